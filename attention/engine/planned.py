"""UNet evaluations that a run is planned to cost, said before its first step."""

from __future__ import annotations

import logging

from ...host.guider import is_guided
from .run import Run

log = logging.getLogger(__name__)


def planned_evaluations(run: Run) -> tuple[int, int]:
    """Rows that a single-evaluation sampler will send through the UNet: (source rows, rows of what is sampled)."""
    calls = [s for s in run.sigmas[:-1] if s > 0]
    source = second = 0
    for sigma in calls:
        run.move_to(sigma)
        second += run.batch * len(further_rows(run)) if is_guided(run.guider) else 0
        if run.inversion is not None and not run.knows_source:
            source += len(run.sources()) * (run.batch if run.packs_source else run.inversion.batch)
    parts = sum(len(branch.parts) for branch in run.branches) or 1
    return source, second + len(calls) * run.batch * parts * (2 if is_guided(run.guider) else 1)


def further_rows(run: Run) -> list[str]:
    """Names of the further negative prompts that run at this step."""
    return [name for control in run.acting.guidance for name in control.rows()]


def log_plan(run: Run) -> None:
    """Say what a run will cost, and what acts in it."""
    source, target = planned_evaluations(run)
    names = " + ".join(control.name for control in run.controls) or "no edits"
    log.info(
        "Attention Edit plans %d UNet evaluations (%d source, %d target): %s",
        source + target,
        source,
        target,
        names,
    )
