"""What a mask's faults cost CPAM, with and without mask refinement: `python demo/evaluate.py --masks`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from measure import pack_methods, report
from measure.editing import evaluate_task
from measure.methods import Method, Setup
from scenes import metrics, tasks
from scenes.tasks import Task
from torch import Tensor

TASKS = ("recolour", "replace")
GROWTH = 0.3
"""By how much the side of a mask is too large, as a share of the object's size."""
SHIFT = 0.2
"""How far a mask lies off to the lower right, as a share of the object's size."""


MARGIN = 2
"""Pixels around the object that do not count as background. The tables of edits leave out more, for shadows that
change with an object; here that would hide the very ring that a mask is too large by."""


def make_task(name: str, count: int) -> Task:
    """A task of TASKS that judges the background up to the object."""
    task = tasks.make_task(name, count)
    return replace(task, kept=(1 - metrics.dilate(task.mask, MARGIN)) * tasks.unchanged(task.source, task.truth))


def _sizes(masks: Tensor) -> list[int]:
    """Side in pixels of a square with each mask's area, for masks (B, 1, H, W)."""
    return [round(float(mask.sum()) ** 0.5) for mask in masks]


def too_large(masks: Tensor) -> Tensor:
    """Masks (B, 1, H, W) of 0 and 1 grown on all sides."""
    grown = [metrics.dilate(m[None], round(side * GROWTH / 2)) for m, side in zip(masks, _sizes(masks), strict=True)]
    return torch.cat(grown)


def shifted(masks: Tensor) -> Tensor:
    """Masks (B, 1, H, W) moved to the lower right; what leaves the image is lost."""
    result = torch.zeros_like(masks)
    height, width = masks.shape[-2:]
    for moved, mask, side in zip(result, masks, _sizes(masks), strict=True):
        by = round(side * SHIFT)
        moved[:, by:, by:] = mask[:, : height - by, : width - by]
    return result


def boxes(masks: Tensor) -> Tensor:
    """The smallest upright rectangles that hold the masks (B, 1, H, W)."""
    result = torch.zeros_like(masks)
    for box, mask in zip(result, masks, strict=True):
        rows, columns = mask[0].any(1).nonzero(), mask[0].any(0).nonzero()
        box[:, int(rows.min()) : int(rows.max()) + 1, int(columns.min()) : int(columns.max()) + 1] = 1
    return result


FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "exact": lambda masks: masks,
    f"{GROWTH:.0%} too large": too_large,
    f"shifted by {SHIFT:.0%}": shifted,
    "bounding box": boxes,
}
"""What is given instead of the true mask, by name."""
WAYS: dict[str, dict[str, Any] | None] = {
    "as given": None,
    "refined": {},
    "refined, near": {"scales": (2,), "own_scale": 1, "reach": 0.4},
    "refined, inside": {"scales": (2,), "own_scale": 1, "reach": 0.0},
}
"""What is made of a mask: nothing, what the paper does, and the same with finer word maps, sharpened by
self-attention, that may go as far from the given mask as `shifted` moves it, or not at all."""


def _edit(setup: Setup, task: Task, fault: Callable[[Tensor], Tensor], recipe: pack_methods.Recipe) -> Tensor:
    return pack_methods.cpam(setup, replace(task, mask=fault(task.mask)), recipe)


def methods_of() -> list[Method]:
    """CPAM with every fault, and every way to refine."""
    found = []
    for name, fault in FAULTS.items():
        for way, refinement in WAYS.items():
            recipe = replace(pack_methods.PAPER, refinement=refinement)
            evaluations = partial(pack_methods.planned_rows, recipe)
            found.append(Method(f"{name}, {way}", partial(_edit, fault=fault, recipe=recipe), evaluations))
    return found


@dataclass(frozen=True)
class Cost:
    """What a faulty mask did to one task.

    Attributes:
        overlap: mean intersection over union of the given and the true masks.
        success: share of images that show the edit, by what was made of the mask.
        background_psnr: dB to the source outside the object and MARGIN, by the same.
    """

    task: str
    mask: str
    overlap: float
    success: dict[str, float]
    background_psnr: dict[str, float]


def costs(task: Task, results: dict[str, tuple[float, float]]) -> list[Cost]:
    """Gather what `methods_of` gave: (success, background PSNR) by label."""
    found = []
    for name, fault in FAULTS.items():
        success, psnr = ({way: results[f"{name}, {way}"][i] for way in WAYS} for i in range(2))
        overlap = float(metrics.overlap(fault(task.mask), task.mask).mean())
        found.append(Cost(task.name, name, overlap, success, psnr))
    return found


def table(found: list[Cost]) -> str:
    """A task's costs as Markdown."""
    first, *others = WAYS
    header = [found[0].task, "overlap with the true mask", f"edit success, {first}", *others]
    header += [f"background PSNR, {first}", *others]
    rows = [
        [
            cost.mask,
            f"{cost.overlap:.2f}",
            *(report.percent(share) for share in cost.success.values()),
            *(f"{value:.1f} dB" for value in cost.background_psnr.values()),
        ]
        for cost in found
    ]
    return report.markdown(header, rows)


def measure(setup: Setup, options: argparse.Namespace) -> list[Cost]:
    """Measure what faults of the mask cost, with and without refinement."""
    results = []
    for name in (name for name in TASKS if name in (options.tasks or tasks.NAMES)):
        task = make_task(name, options.count)
        chosen = methods_of()
        edited = evaluate_task(setup, task, chosen, options.batch, options.output, sheet=f"masks {name}")
        found = costs(task, {e.method: (e.success, e.background_psnr) for e in edited})
        print(table(found))
        results += found
    return results
