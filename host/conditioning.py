"""The host's CONDITIONING: what one is, and what of it the source branch uses."""

from __future__ import annotations

from typing import Any

import comfy.conds
import comfy.sampler_helpers
import torch
from torch import Tensor

Conditioning = list[Any]
"""The host's CONDITIONING: a list of [states (B, L, C), options]."""
SAME_TEXT = 1e-2
"""Relative difference up to which two encoded texts are one: it may have been stored in half precision."""
_EDITS_OWN = ("control", "control_apply_to_uncond")
"""Options of a conditioning that belong to the edit and not to the source."""


def with_states(conds: list[dict[str, Any]], states: Tensor) -> list[dict[str, Any]]:
    """Processed conditionings with other text states (1 or B, L, C)."""
    cross = comfy.conds.CONDCrossAttn(states)
    return [{**cond, "model_conds": {**cond["model_conds"], "c_crossattn": cross}} for cond in conds]


def for_guider(conditioning: Conditioning) -> list[dict[str, Any]]:
    """A CONDITIONING as the host's guiders hold it."""
    return comfy.sampler_helpers.convert_cond(conditioning)


def source_conditioning(conditioning: Conditioning, name: str = "source prompt of an inversion") -> Conditioning:
    """The source prompt as the source branch uses it: text only.

    ControlNets, areas and hooks belong to the edit; on the source they would change what it is meant to keep.

    Raises:
        ValueError: the source prompt has several parts, or an area, a mask or hooks.
    """
    hindering = [k for _, options in conditioning for k in ("area", "mask", "hooks") if options.get(k) is not None]
    if len(conditioning) != 1 or hindering:
        raise ValueError(
            f"The {name} must be one plain conditioning; this one has {len(conditioning)} "
            f"parts{' with ' + ', '.join(hindering) if hindering else ''}. Connect a CLIP Text Encode directly."
        )
    states, options = conditioning[0]
    return [[states, {k: v for k, v in options.items() if k not in _EDITS_OWN}]]


def check_text(conditioning: Conditioning, name: str) -> None:
    """Look once at the tensors of a text that comes in.

    Raises:
        ValueError: the states are not (B, L, C), or a tensor holds NaN or infinity.
    """
    for states, options in conditioning:
        if states.ndim != 3:
            raise ValueError(
                f"Connect CLIP Text Encode: the {name} has states of shape {tuple(states.shape)}; expected is "
                "(batch, tokens, channels)."
            )
        tensors = {"states": states, **{k: v for k, v in options.items() if isinstance(v, Tensor)}}
        for key, value in tensors.items():
            if not torch.isfinite(value).all():
                raise ValueError(
                    f"Encode the {name} again, with another CLIP or without LoRA: its {key} hold NaN or infinite "
                    "values, and so would the picture."
                )


def encoded_alike(one: Tensor, two: Tensor) -> bool:
    """Whether encoded texts (1 or B, L, C) are the same but for rounding."""
    one, two = one.float().cpu(), two.float().cpu()
    return one.shape[1:] == two.shape[1:] and float((one - two).norm()) <= SAME_TEXT * float(one.norm())


def same_text(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two of the guider's conditionings say the same."""

    def same(x: Tensor | None, y: Tensor | None) -> bool:
        if x is None or y is None:
            return x is y
        return x.shape == y.shape and torch.equal(x.to(y), y)

    return all(same(a.get(key), b.get(key)) for key in ("cross_attn", "pooled_output"))
