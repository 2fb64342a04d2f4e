"""The inversion's null text in a sampler run: in every step its states stand in the negative prompt's place."""

from __future__ import annotations

from typing import Any

import comfy.conds
import comfy.sampler_helpers

from ...host.conditioning import with_states
from ...host.marks import NULL_KEY
from ...host.remarks import Kind
from ...inversion.record import Inversion
from .run import Run

TEXTUAL = ("y", "attention_mask", "num_tokens", "clip_text_pooled", "guidance")
"""Beside the text's states, what the host's models take of a prompt: the pooled vector, how long it is, and the
guidance that distilled models read."""
ALWAYS = ("y", "guidance")
"""Of these, what a model cannot do without."""


def register(inversion: Inversion, guider: Any) -> None:
    """Let the host process the null text as one more conditioning: it makes SDXL's vector from the options."""
    if inversion.null_conditioning is not None:
        guider.conds[NULL_KEY] = comfy.sampler_helpers.convert_cond(inversion.null_conditioning)


def replaced(run: Run, index: int, conds: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Conditionings of a call with the present step's null text in the place of an unconditional prompt.

    The host then builds their rows as ever: it repeats tokens to a common length, and ControlNets see it too.
    """
    states = run.null_text(run.role_of(conds[0].get("uuid"), index)[0]) if conds else None
    if states is None or not conds:
        return conds
    null = run.guider.conds[NULL_KEY][0]["model_conds"]
    conds = [{**cond, "model_conds": _of_text(null, cond["model_conds"])} for cond in conds]
    if run.family.joint:  # one text for all steps there, which the host may have filled up to a common length
        states = null["c_crossattn"].cond
    # Once per noise level, and where the other prompts are: the host joins only what lies on one device.
    given, dtype = conds[0]["model_conds"].get("c_crossattn", null["c_crossattn"]), null["c_crossattn"].cond.dtype
    key = ("null text", dtype, given.cond.device)
    placed = run.now(key, lambda: states.to(given.cond.device, dtype))
    return with_states(conds, placed, type(null["c_crossattn"]))


def _of_text(null: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A prompt's processed parts with those that belong to the text from the null text."""
    kept = {name: part for name, part in own.items() if name not in TEXTUAL or name in ALWAYS}
    return {**kept, **{name: null[name] for name in TEXTUAL if name in null}}


def judge_guidance(run: Run) -> None:
    """Remark on a null text that meets another guidance than the one that it was optimised for."""
    wanted = run.inversion.null_guidance if run.inversion else None
    given = getattr(run.guider, "cfg", wanted)
    if wanted is not None and given not in (wanted, 1.0):
        run.remarks.add(
            Kind.DOUBTFUL,
            f"Set the sampler's cfg to {wanted:g}: the null text was optimised for guidance {wanted:g}, but the "
            f"sampler runs at {given:g}, at which the source is kept worse.",
        )
