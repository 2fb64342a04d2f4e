"""The source branch: what its rows are conditioned on, and when they run.

The source is one more conditioning of the run, or two where a control reads both halves of guidance, so the host
itself builds its text, its SDXL vector and its batch rows. It runs in a call of its own ahead of the target's, or
packed into it.
"""

from __future__ import annotations

from typing import Any

import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from ..inversion.record import Conditioning
from . import null_context
from .plan import KEY, KEY_NEGATIVE, KEY_SECOND, SOURCES
from .run import Call, Phase, Run, savable
from .words import Prompt

SAME_TEXT = 1e-2
"""Relative difference up to which two encoded texts are one: it may have been stored in half precision."""
_EDITS_OWN = ("control", "control_apply_to_uncond")
"""Options of a conditioning that belong to the edit and not to the source."""


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


def check_source_prompt(run: Run, prompt: Prompt, name: str) -> None:
    """Refuse a source prompt that is not the one which the run's image was inverted or drawn with.

    The maps of its words would be read in another text, whose words stand elsewhere.

    Raises:
        ValueError: the encoded texts differ.
    """
    if run.inversion is None or prompt.states is None:
        return
    if not _encoded_alike(run.inversion.conditioning[0][0], prompt.states):
        raise ValueError(
            f"{name}'s source_prompt is {prompt.text!r}, but the inversion was made with another prompt (or another "
            "CLIP). Connect that Prompt with Words' conditioning to DDIM Inversion's source too."
        )


def check_target_prompt(run: Run, prompt: Prompt, name: str) -> None:
    """Refuse a target prompt that is not the one which is sampled with, of as many tokens.

    Raises:
        ValueError: the encoded texts differ.
    """
    for cond in run.guider.conds.get("positive") or []:
        states = cond.get("cross_attn")
        if states is None or prompt.states is None or states.shape[1:] != prompt.states.shape[1:]:
            continue  # other lengths are refused where the words are looked for
        if not _encoded_alike(states, prompt.states):
            raise ValueError(
                f"{name}'s target_prompt is {prompt.text!r}, but the sampler's positive conditioning is another "
                "prompt (or from another CLIP). Connect both outputs of one Prompt with Words: its prompt to "
                f"{name} and its conditioning to the sampler."
            )


def _encoded_alike(one: Tensor, two: Tensor) -> bool:
    """Whether encoded texts (1 or B, L, C) are the same but for rounding."""
    one, two = one.float().cpu(), two.float().cpu()
    return one.shape[1:] == two.shape[1:] and float((one - two).norm()) <= SAME_TEXT * float(one.norm())


def add_conditionings(run: Run) -> None:
    """Put the source's conditionings, and a second negative, among those of the run's guider.

    The host processes them with the others, as soon as the run begins.

    Raises:
        ValueError: several controls with a second negative, or prompts of several parts.
    """
    conds = run.guider.conds
    seconds = [(control.name, given) for control in run.controls if (given := control.second_negative()) is not None]
    if len(seconds) > 1:
        raise ValueError(f"{seconds[0][0]} and {seconds[1][0]} both bring a second negative prompt; disconnect one.")
    for _, given in seconds:
        conds[KEY_SECOND] = comfy.sampler_helpers.convert_cond(source_conditioning(given))
    if run.inversion is None:
        return
    conds[KEY] = comfy.sampler_helpers.convert_cond(source_conditioning(run.inversion.conditioning))
    conds.pop(KEY_NEGATIVE, None)
    null_context.register(run.inversion, run.guider)
    if any(control.both_halves for control in run.controls) and guided(run.guider):
        null = run.inversion.null_conditioning
        negative = _negative(conds.get("negative") or [] if null is None else comfy.sampler_helpers.convert_cond(null))
        changing = run.inversion.null_states is not None and len(run.inversion.null_states) > 1
        if negative is not None and (changing or not _same_text(negative, conds[KEY][0])):
            conds[KEY_NEGATIVE] = comfy.sampler_helpers.convert_cond([[negative.get("cross_attn"), negative]])
            run.halved = True


def guided(guider: Any) -> bool:
    """Whether a host's guider runs the unconditional half."""
    if hasattr(guider, "cfg1"):  # three prompts, each with a scale
        return True
    return getattr(guider, "cfg", 1.0) != 1.0 or guider.model_options.get("disable_cfg1_optimization", False)


def _negative(conds: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The negative prompt as the source's unconditional half uses it: text only."""
    if not conds:
        return None
    hindering = [key for cond in conds for key in ("area", "mask", "hooks") if cond.get(key) is not None]
    if len(conds) != 1 or hindering:
        raise ValueError(
            f"This edit runs the source with the negative prompt too, which must then be one plain conditioning; it "
            f"has {len(conds)} parts{' with ' + ', '.join(hindering) if hindering else ''}. Connect a CLIP Text "
            "Encode directly, or invert the image with the negative prompt's text."
        )
    return {key: value for key, value in conds[0].items() if key not in _EDITS_OWN}


def _same_text(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two of the guider's conditionings say the same."""

    def same(x: Tensor | None, y: Tensor | None) -> bool:
        if x is None or y is None:
            return x is y
        return x.shape == y.shape and torch.equal(x.to(y), y)

    return all(same(a.get(key), b.get(key)) for key in ("cross_attn", "pooled_output"))


def prepare_source(run: Run, guider: Any, timestep: Tensor, model_options: dict[str, Any]) -> None:
    """Run the source branch now, or make it ready to ride along in the target's call."""
    assert run.inversion is not None
    x = run.inversion.at(run.sigma).to(timestep.device)

    def capture() -> None:
        # From second place on: see `present_as`.
        conds: list[Any] = [None, *source_conds(run)]
        with run.during(Phase.CAPTURE):
            comfy.samplers.calc_cond_batch(
                guider.inner_model,
                conds,
                x,
                timestep[:1].expand(len(x)),
                model_options,
            )

    if run.packs():
        run.packed_source, run.capture_now = x, capture
    elif run.moves():
        savable(capture)
    else:
        capture()


def source_conds(run: Run) -> list[list[dict[str, Any]]]:
    """The source's processed conditionings of this step, without what the host spread to them from the target's."""
    return [
        [{k: v for k, v in cond.items() if k != "control"} for cond in run.guider.conds[role] if "area" not in cond]
        for role in run.sources()
    ]


def present_as(run: Run, roles: tuple[str, ...], indices: list[int]) -> list[int]:
    """The host's marks of rows for other packs, which know 0 (conditional) and 1 only: 1 leaves a row alone."""
    packed = run.packed_source is not None and run.phase is Phase.EDIT
    ahead = len(run.sources()) if packed else 0
    ours = (*SOURCES, KEY_SECOND)
    return [1 if role in ours else index - ahead for role, index in zip(roles, indices, strict=True)]


def with_source(run: Run, call: Call, x: Tensor) -> Tensor:
    """The rows of a call with the packed source's latent in its rows, and its features ready for the target's."""
    assert run.packed_source is not None and run.capture_now is not None
    missing = set(run.sources()) - set(call.roles) - run.roles_captured
    if len(call.target_rows) and missing:
        # The host split the batch (memory, ControlNet) and the target came first.
        run.capture_now()
        run.roles_captured |= set(run.sources())
    run.roles_captured |= set(run.sources()) & set(call.roles)
    if not call.sources:
        return x
    x = x.clone()
    for _, _, rows in call.sources:
        x[rows] = run.packed_source.to(x).expand(len(rows), -1, -1, -1)
    return x
