"""The host's guiders and samplers, as the pack runs them."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from .conditioning import check_text


def is_guided(guider: Any) -> bool:
    """Whether a host's guider runs the unconditional half."""
    if hasattr(guider, "cfg1"):  # three prompts, each with a scale
        return True
    return getattr(guider, "cfg", 1.0) != 1.0 or guider.model_options.get("disable_cfg1_optimization", False)


def cfg_guider(model: Any, positive: Any, negative: Any, guidance: float) -> comfy.samplers.CFGGuider:
    """The host's guider for positive and negative CONDITIONING (None: the positive one) at a guidance scale.

    Raises:
        ValueError: a prompt that no model can read, or that would draw NaN.
    """
    check_text(positive, "source prompt")
    check_text(negative if negative is not None else [], "negative prompt")
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative if negative is not None else positive)
    guider.set_cfg(guidance)
    return guider


def run_sampler(
    guider: comfy.samplers.CFGGuider,
    sampler: comfy.samplers.Sampler,
    start: Tensor,
    sigmas: list[float],
    steps: int | None = None,
    seed: int = 0,
) -> None:
    """Run a sampler of ours under a guider, with the host's progress bar and preview.

    Args:
        start: (B, C, h, w) as a LATENT socket carries it.
        sigmas: the levels, in the order of the walk.
        steps: of the progress bar; one per level after the first if None.
        seed: what the host seeds the run with.
    """
    guider.sample(
        torch.zeros_like(start),
        start,
        sampler,
        torch.tensor(sigmas),
        callback=latent_preview.prepare_callback(guider.model_patcher, steps or len(sigmas) - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
