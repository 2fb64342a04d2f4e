"""The host's CONDITIONING: what one is, and what of it the source branch uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.conds
import comfy.sampler_helpers
import torch
from torch import Tensor

from .marks import STATES

Conditioning = list[Any]
"""The host's CONDITIONING: a list of [states (B, L, C), options]."""
SAME_TEXT = 1e-2
"""Relative difference up to which two encoded texts are one: it may have been stored in half precision."""
CONTROL = ("control", "control_apply_to_uncond")
"""Options of a conditioning that the host spreads from one prompt to all."""
_SIZES_WIDTH = 6 * 256
"""What SDXL's vector holds beside the pooled text: six sizes and places, each in 256 numbers."""
_BESIDE_TEXT = {
    "control": "a ControlNet",
    "area": "an area",
    "mask": "a mask",
    "hooks": "hooks (LoRA or weight schedules)",
    "gligen": "GLIGEN boxes",
    "unclip_conditioning": "an image prompt (unCLIP)",
    "concat_latent_image": "an inpainting image",
    "concat_mask": "an inpainting mask",
    "reference_latents": "reference pictures",
    "default": "the mark of a default conditioning",
}
"""Options that make more of a prompt than its text, and what to call them."""


def beside_text(options: dict[str, Any]) -> list[str]:
    """What the options of a CONDITIONING make of a prompt beyond its text, in words."""
    found = [name for key, name in _BESIDE_TEXT.items() if options.get(key) is not None and options[key] is not False]
    first = max(options.get(key) or 0.0 for key in ("start_percent", "clip_start_percent"))
    last = min(options.get(key, 1.0) for key in ("end_percent", "clip_end_percent"))
    if first > 0 or last < 1:
        found.append(f"a timestep range ({first:g} to {last:g})")
    if options.get("strength", 1.0) != 1.0:
        found.append(f"a strength of {options['strength']:g}")
    return found


def with_states(
    conds: list[dict[str, Any]], states: Tensor, kind: type[comfy.conds.CONDRegular] = comfy.conds.CONDCrossAttn
) -> list[dict[str, Any]]:
    """Processed conditionings with other text states (1 or B, L, C); `kind`: how the host holds them in this model."""
    cross = kind(states)
    return [{**cond, "model_conds": {**cond["model_conds"], "c_crossattn": cross}} for cond in conds]


def for_guider(conditioning: Conditioning) -> list[dict[str, Any]]:
    """A CONDITIONING as the host's guiders hold it."""
    return comfy.sampler_helpers.convert_cond(conditioning)


def of_images(conds: list[dict[str, Any]], images: Tensor, batch: int) -> list[dict[str, Any]]:
    """Conditionings of some of a batch's images: what there is one of per image is chosen from."""
    if len(images) == batch:
        return conds
    chosen = []
    for cond in conds:
        parts = {}
        for name, part in cond["model_conds"].items():
            several = isinstance(part.cond, Tensor) and len(part.cond) == batch
            parts[name] = type(part)(part.cond[images.to(part.cond.device)]) if several else part
        chosen.append({**cond, "model_conds": parts})
    return chosen


def states_at(cond: dict[str, Any], pair: int) -> Tensor | None:
    """A processed conditioning's text states (1 or B, L, C) of one step; None if they are the same in all steps.

    Args:
        pair: number of the two noise levels that the step is between, 0 for the cleanest.

    Raises:
        ValueError: states of another length than the conditioning's, or for other steps.
    """
    states = cond.get(STATES)
    if states is None:
        return None
    own = cond["model_conds"]["c_crossattn"].cond
    if states.shape[2:] != own.shape[1:] or pair >= len(states):
        raise ValueError(
            f"A prompt with learned words holds {len(states)} steps of {states.shape[2]} tokens, but step {pair} "
            f"of {own.shape[1]} tokens is sampled. Connect Prompt with Words directly to the sampler, and the "
            "inversion whose words it took to the edit."
        )
    return states[pair]


def at_step(
    conds: list[dict[str, Any]], pair: int, moved: Callable[[dict[str, Any], Tensor], Tensor] | None = None
) -> list[dict[str, Any]]:
    """Processed conditionings as they are in one step, where their text states change from step to step.

    Args:
        pair: see `states_at`.
        moved: brings a conditioning's states to where its own are, and to their precision; None does so each time.

    Raises:
        ValueError: see `states_at`.
    """
    found = []
    for cond in conds:
        states = states_at(cond, pair)
        if states is None:
            found.append(cond)
        else:
            here = moved(cond, states) if moved else states.to(cond["model_conds"]["c_crossattn"].cond)
            found += with_states([cond], here)
    return found


def source_conditioning(conditioning: Conditioning, name: str = "source prompt of an inversion") -> Conditioning:
    """A prompt that is used as text only, on its own and in all steps, as the source branch uses it.

    ControlNets, areas, ranges of steps and hooks belong to the edit: an inversion that they have shaped would not find
    its image again without them.

    Raises:
        ValueError: it has several parts or none, or more than text.
    """
    hindering = [what for _, options in conditioning for what in beside_text(options)]
    if len(conditioning) != 1:
        hindering.insert(0, f"{len(conditioning)} parts")
    if hindering:
        raise ValueError(
            f"Connect a CLIP Text Encode directly: the {name} must be one plain text for all steps, and this one has "
            f"{', '.join(dict.fromkeys(hindering))}. That belongs on the sampler's positive prompt."
        )
    return conditioning


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


def check_readable(model: Any, conditioning: Conditioning, name: str) -> None:
    """Refuse a text that a host MODEL cannot read, because another model's text encoder made it.

    Raises:
        ValueError: the states, or SDXL's pooled vector, are of another width than the model's.
    """
    unet = model.model.model_config.unet_config
    width, vector = unet.get("context_dim"), unet.get("adm_in_channels")
    pooled_width = vector - _SIZES_WIDTH if vector is not None and unet.get("num_classes") == "sequential" else None
    for states, options in conditioning:
        pooled = options.get("pooled_output")
        wrong = ""
        if width is not None and states.shape[-1] != width:
            wrong = f"has {states.shape[-1]} numbers per token, and this model reads {width}"
        elif pooled_width is not None and (pooled is None or pooled.shape[-1] != pooled_width):
            given = "no pooled vector" if pooled is None else f"a pooled vector of {pooled.shape[-1]} numbers"
            wrong = f"has {given}, and this model reads one of {pooled_width}"
        if wrong:
            raise ValueError(
                f"Encode the {name} with the CLIP of the same checkpoint as the model: it {wrong}. A text for SD1.x, "
                "SD2.x or SDXL goes with models of that family only."
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
