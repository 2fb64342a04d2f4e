"""What the oldest hosts that the pack runs on do not have yet; the other half is in schemas.py."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import torch


def inference_dtype(model: Any) -> torch.dtype:
    """The precision in which a host's base model computes; hosts before 0.16 do not say it themselves."""
    if hasattr(model, "get_dtype_inference"):
        return model.get_dtype_inference()
    return model.manual_cast_dtype or model.get_dtype()


def is_dynamic(patcher: Any) -> bool:
    """Whether a MODEL's weights are loaded as they are needed; hosts before 0.16 load none so."""
    return hasattr(patcher, "is_dynamic") and patcher.is_dynamic()


def raise_non_oom(error: Exception) -> None:
    """Raises an error again unless memory ran out; hosts up to 0.16 know the exception only."""
    management = comfy.model_management
    if hasattr(management, "raise_non_oom"):
        management.raise_non_oom(error)
    elif not isinstance(error, management.OOM_EXCEPTION):
        raise error
