"""The source branch: what its rows are conditioned on, and when they run.

The source is one more conditioning of the run, or two where a control reads both halves of guidance, so the host
itself builds its text, its SDXL vector and its batch rows. It runs in a call of its own ahead of the target's, or
packed into it.
"""

from __future__ import annotations

from typing import Any

import comfy.sampler_helpers
import comfy.samplers
from torch import Tensor

from ...host.caches import without_caches
from ...host.conditioning import CONTROL, Conditioning, beside_text, same_text, source_conditioning
from ...host.guider import is_guided
from ...host.marks import KEY, KEY_NEGATIVE, SOURCES, is_row, prompt_key, row_key
from . import null_text as null_context
from .control import GuidanceControl
from .moment import savable
from .recording import from_record, to_record
from .roles import Call, is_conditional
from .run import Phase, Run


def add_conditionings(run: Run) -> None:
    """Put the source's conditionings, branches' prompts and further negative ones among those of the run's guider.

    The host processes them with the others, as soon as the run begins.

    Raises:
        ValueError: several controls that bring the same row, or prompts of several parts.
    """
    conds = run.guider.conds
    brought: dict[str, str] = {}
    for control in run.controls:
        rows = control.rows() if isinstance(control, GuidanceControl) else {}
        for name, given in rows.items():
            if name in brought:
                raise ValueError(f"{brought[name]} and {control.name} both bring a {name} prompt; disconnect one.")
            brought[name] = control.name
            conds[row_key(name)] = comfy.sampler_helpers.convert_cond(source_conditioning(given))
    for branch in run.branches:
        for part in branch.parts:
            if part.prompt is not None:
                given = _prompt_of(run, source_conditioning(part.prompt, f"prompt of {part.name}"))
                conds[prompt_key(part.name)] = comfy.sampler_helpers.convert_cond(given)
    if run.inversion is None:
        return
    conds[KEY] = comfy.sampler_helpers.convert_cond(source_conditioning(run.inversion.conditioning))
    conds.pop(KEY_NEGATIVE, None)
    null_context.register(run.inversion, run.guider)
    if any(act.own_half for acts in run.declared.values() for act in acts) and is_guided(run.guider):
        null = run.inversion.null_conditioning
        negative = _negative(conds.get("negative") or [] if null is None else comfy.sampler_helpers.convert_cond(null))
        changing = run.inversion.null_states is not None and len(run.inversion.null_states) > 1
        if negative is not None and (changing or not same_text(negative, conds[KEY][0])):
            conds[KEY_NEGATIVE] = comfy.sampler_helpers.convert_cond([[negative.get("cross_attn"), negative]])
            run.halved = True


def _prompt_of(run: Run, given: Conditioning) -> Conditioning:
    """A part's prompt with the ControlNets that are on the sampler's positive prompt."""
    positive = (run.guider.conds.get("positive") or [{}])[0]
    beside = {key: positive[key] for key in CONTROL if key in positive}
    return [[states, {**options, **beside}] for states, options in given]


def _negative(conds: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The negative prompt as the source's unconditional half uses it: text only."""
    if not conds:
        return None
    options = {key: value for key, value in conds[0].items() if key not in CONTROL}
    hindering = beside_text(options) if len(conds) == 1 else [f"{len(conds)} parts"]
    if hindering:
        raise ValueError(
            "Connect a CLIP Text Encode directly to the sampler's negative, or invert the image with the negative "
            "prompt's text: this edit runs the source with the negative prompt too, which must then be one plain text "
            f"for all steps, and it has {', '.join(hindering)}."
        )
    return options


def prepare_source(run: Run, guider: Any, timestep: Tensor, model_options: dict[str, Any]) -> None:
    """Run the source branch now, or make it ready to ride along in the target's call; or take what is kept of it."""
    if run.inversion is None:
        return
    if from_record(run, timestep.device):
        return
    x, options = run.source(timestep.device), without_caches(model_options)

    def capture() -> None:
        # From second place on: see `present_as`.
        conds: list[Any] = [None, *source_conds(run)]
        with run.during(Phase.CAPTURE):
            comfy.samplers.calc_cond_batch(
                guider.inner_model,
                conds,
                x,
                timestep[:1].expand(len(x)),
                options,
            )

    if run.packs_source:
        run.packed_source, run.capture_now = x, capture
        return
    if run.acting.moves:
        savable(capture)
    else:
        capture()
    to_record(run, timestep.device)


def source_conds(run: Run) -> list[list[dict[str, Any]]]:
    """The source's processed conditionings of this step, without what the host spread to them from the target's."""
    return [
        [{k: v for k, v in cond.items() if k != "control"} for cond in run.guider.conds[role] if "area" not in cond]
        for role in run.sources()
    ]


def present_as(run: Run, roles: tuple[str, ...], indices: list[int]) -> list[int]:
    """The host's marks of rows for other packs, which know 0 (conditional) and 1 only: 1 leaves a row alone."""
    if run.branches:
        return [0 if role not in SOURCES and is_conditional(role) else 1 for role in roles]
    packed = run.packed_source is not None and run.phase is Phase.EDIT
    ahead = len(run.sources()) if packed else 0
    return [1 if role in SOURCES or is_row(role) else index - ahead for role, index in zip(roles, indices, strict=True)]


def with_source(run: Run, call: Call, x: Tensor) -> Tensor:
    """The rows of a call with the packed source's latent in its rows, and its features ready for the target's."""
    packed, capture = run.packed_source, run.capture_now
    if packed is None or capture is None:
        return x
    missing = set(run.sources()) - set(call.roles) - run.roles_captured
    if call.groups and missing:
        # The host split the batch (memory, ControlNet) and the target came first.
        capture()
        run.roles_captured |= set(run.sources())
    run.roles_captured |= set(run.sources()) & set(call.roles)
    if not call.sources:
        return x
    x = x.clone()
    for _, _, rows in call.sources:
        x[rows] = packed.to(x).expand(len(rows), *x.shape[1:])
    return x
