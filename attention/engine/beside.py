"""Branches in a run: what the sampler is given and hands back, and one prediction of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from ...host.guider import sampler_name
from ...host.marks import prompt_key
from .branches import OWN, Branch, BranchControl, BranchPart
from .roles import Call, Row, is_conditional
from .run import Run

Conds = list[dict[str, Any]] | None
"""The host's processed conditionings of one prompt; None where it is not run."""
AskNetwork = Callable[[list[Conds], Tensor], list[Tensor]]
"""The host's batch of conditionings: a prediction (B, C, h, w) for each of them and a latent (B, C, h, w)."""
COUPLED = ("dpm_adaptive",)
"""Parts of the names of the host's samplers whose steps depend on all images of a batch together."""


def begin_branches(run: Run, sampler: Any) -> None:
    """Ask the control that has images of its own for them, if there is one.

    Raises:
        ValueError: several such controls, a start that is not the inversion's, or a sampler that would mix the images.
    """
    having = [control for control in run.controls if isinstance(control, BranchControl)]
    if not having:
        return
    if len(having) > 1:
        raise ValueError(
            f"Remove one of {' and '.join(control.name for control in having)}: each samples images of its own "
            "beside the edit, and a model can carry one such edit."
        )
    if run.plan.schedule is None:
        raise ValueError(
            f"Connect Edit Setup's model to the sampler: {having[0].name} samples several images from starts of their "
            "own, and this run begins with the sampler's noise."
        )
    if run.resumes or not run.whole or run.sigmas[0] < run.plan.schedule[0]:
        raise ValueError(
            f"Let one sampler do all steps: {having[0].name} samples several images side by side, of which a run that "
            "goes on, ends early or starts late has only one."
        )
    if run.plan.variation is not None:
        raise ValueError(f"Set Edit Setup's variation to 0: {having[0].name} has starts, noise and a seed of its own.")
    name = sampler_name(sampler)
    if any(part in name for part in COUPLED):
        raise ValueError(
            f"Choose another sampler, such as euler, ddim or dpmpp_2m: {name} chooses its steps "
            f"by all images of a batch, and {having[0].name} samples several that must not depend on each other."
        )
    run.branches = having[0].branches(run)


def only_own(run: Run, callback: Any) -> Any:
    """The host's callback with the run's own images: nobody else knows of the others."""
    if callback is None or not run.branches:
        return callback
    return lambda step, denoised, x, total: callback(step, run.own(denoised), run.own(x), total)


def row_of(uuid: Any, index: int) -> Row:
    """The mark of a conditioning in a call by its identity there; without one it is the run's own."""
    return uuid if isinstance(uuid, Row) else Row(OWN, index, uuid)


def rows_of(run: Run, branch: Branch, conds: Sequence[Conds]) -> list[Conds]:
    """The conditionings of all parts of a branch, part by part, marked as theirs."""
    return [_marked(run, part, half, given) for part in branch.parts for half, given in enumerate(conds)]


def _marked(run: Run, part: BranchPart, half: int, given: Conds) -> Conds:
    if not given:
        return given
    if part.prompt is not None and is_conditional(run.role_of(given[0].get("uuid"), half)[0]):
        given = [cond for cond in run.guider.conds[prompt_key(part.name)] if "area" not in cond]
    return [{**cond, "uuid": Row(part.name, half, cond.get("uuid"))} for cond in given]


def predict(
    run: Run, evaluate: AskNetwork, conds: list[Conds], x: Tensor, ahead: Sequence[Conds], behind: Sequence[Conds]
) -> tuple[list[Tensor], list[Tensor]]:
    """One prediction of all branches.

    Args:
        conds: of the guider. x: (R, C, h, w), the sampler's batch.
        ahead: the source's, if it rides along; behind: the further negative prompts of the run's own latent.

    Returns:
        for each of the guider's conditionings the prediction (R, C, h, w); and the (B, C, h, w) of those behind.
    """
    rows, latents = [rows_of(run, branch, conds) for branch in run.branches], x.split(run.batch)
    calls = list(zip(rows, latents, strict=True))
    if run.packs():
        # From behind, as the host takes them where they do not fit into one call: what is read comes first.
        order = [rows[0], behind, *rows[1:]]
        run.riding = {p.name: z for b, z in zip(run.branches[1:], latents[1:], strict=True) for p in b.parts}
        run.bring = lambda: [evaluate(*call) for call in calls[:0:-1]]
        out = iter(evaluate([*ahead, *_seeing_own(run, list(chain(*order)))], latents[0])[len(ahead) :])
        own, further, *others = [list(islice(out, len(each))) for each in order]
    else:
        others = [evaluate(*call) for call in calls[:0:-1]][::-1]
        out = evaluate([*ahead, *rows[0], *behind], latents[0])[len(ahead) :]
        own, further = out[: len(rows[0])], out[len(rows[0]) :]
    found = list(zip(run.branches, [own, *others], strict=True))
    halves = range(len(conds))
    return [torch.cat([_together(run, b, p[half :: len(conds)]) for b, p in found]) for half in halves], further


def _together(run: Run, branch: Branch, predictions: list[Tensor]) -> Tensor:
    """A branch's prediction (B, C, h, w) from those of its parts, each where it counts."""
    total = None
    for part, prediction in zip(branch.parts, predictions, strict=True):
        if part.cells is not None:
            name = f"cells of {part.name or OWN}"
            prediction = prediction * run.brought(name, part.cells, prediction)
        total = prediction if total is None else total + prediction
    if total is None:
        raise ValueError(f"The branch {branch.name!r} has no parts; a control must give one or more.")
    return total


def ride(run: Run, rows: Sequence[Row], x: Tensor) -> Tensor:
    """The rows (R, C, h, w) of a call with the latents of the branches that ride in it."""
    batch, moved = len(x) // max(1, len(rows)), x
    for chunk, row in enumerate(rows):
        if row.part in run.riding:
            moved = x.clone() if moved is x else moved
            moved[chunk * batch : (chunk + 1) * batch] = run.riding[row.part]
    return moved


def bring_in_time(run: Run, call: Call) -> None:
    """Run the branches that a call's rows read, if the host has split the batch and these would come first."""
    wanted, here = {act.of for _, act in run.acting.acts if act.of}, {group.part for group in call.groups}
    missing = wanted - here - run.roles_captured
    run.roles_captured |= wanted & here
    reads = any(act.on in here for _, act in run.acting.acts if act.of)
    if run.bring is not None and reads and missing:
        bring, run.bring = run.bring, None
        bring()


class _SeesOwn:
    """A ControlNet in a call of several branches: it is shown each row's own latent, as the network is."""

    def __init__(self, run: Run, control: Any) -> None:
        self._run, self._control = run, control

    def get_control(self, x: Tensor, t: Tensor, cond: dict[str, Any], chunks: int, options: dict[str, Any]) -> Any:
        """The host's call: what the ControlNet adds to the network, for x (R, C, h, w)."""
        x = ride(self._run, [row_of(uuid, index) for index, uuid in enumerate(options["uuids"])], x)
        return self._control.get_control(x, t, cond, chunks, options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._control, name)


def _seeing_own(run: Run, conds: list[Conds]) -> list[Conds]:
    """Conditionings of several branches in one call, with ControlNets that see each row's own latent."""

    def seeing(cond: dict[str, Any]) -> dict[str, Any]:
        control = cond.get("control")
        if control is None:
            return cond
        # One for all rows: the host puts together only what has the same.
        return {**cond, "control": run.once(("sees own", id(control)), lambda: _SeesOwn(run, control))}

    return [None if given is None else [seeing(cond) for cond in given] for given in conds]
