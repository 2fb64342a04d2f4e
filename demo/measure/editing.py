"""How well methods do the tasks of the demo world: `python demo/evaluate.py --edits`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from bundle import world
from measure import injection_methods, methods, pack_methods, report
from measure.methods import METHODS, Method, Setup, batches
from scenes import metrics, tasks
from scenes.tasks import Task
from torch import Tensor
from tqdm import tqdm


@dataclass(frozen=True)
class Edited:
    """How well one method did one task."""

    task: str
    method: str
    success: float
    """Share of images that show the edit, 0..1."""
    background_psnr: float
    """dB to the source where nothing may change."""
    far_psnr: float
    """The same two latent cells further off, where an exact background is the autoencoder's."""
    truth_psnr: float
    """dB to the edited scene, whole image."""
    rows: float
    """UNet row-evaluations per image, counted."""
    planned_rows: float
    time_ratio: float
    """Seconds per image, divided by those of a plain text-to-image run with the same steps and batch."""


def run_method(setup: Setup, method: Method, task: Task, batch: int) -> tuple[Tensor, float, float]:
    """Images (B, 3, S, S), counted UNet rows per image and seconds per image of one method."""
    images: list[Tensor] = []
    with methods.counted(setup) as (counted, counter):
        start = time.perf_counter()
        for part in batches(len(task), batch):
            # Another seed for every batch, so that no two scenes get the same noise.
            images.append(method.run(replace(counted, seed=setup.seed + part.start), task[part]).cpu())
        seconds = time.perf_counter() - start
    return torch.cat(images), counter.rows / len(task), seconds / len(task)


def plain_seconds(setup: Setup, task: Task, batch: int) -> float:
    """Seconds per image of a plain text-to-image run, in a batch of the usual size."""
    prompts = task.full_prompts[:batch]
    methods.generate(setup, prompts, world.SIZE)  # the first run also loads the model
    start = time.perf_counter()
    methods.generate(setup, prompts, world.SIZE)
    return (time.perf_counter() - start) / len(prompts)


def evaluate_task(
    setup: Setup, task: Task, chosen: Sequence[Method], batch: int, folder: Path, sheet: str | None = None
) -> list[Edited]:
    """Run methods on a task, measure them, and save a sheet (named as the task) with their first images."""
    plain = plain_seconds(setup, task, batch)
    results, columns = [], {"before": task.source, "truth": task.truth}
    for method in tqdm(chosen, desc=task.name, leave=False):
        images, rows, seconds = run_method(setup, method, task, batch)
        columns[method.name] = images
        results.append(
            Edited(
                task=task.name,
                method=method.name,
                success=report.share(task.success(images)),
                background_psnr=metrics.mean_psnr(images, task.source, task.kept),
                far_psnr=metrics.mean_psnr(images, task.source, task.far),
                truth_psnr=metrics.mean_psnr(images, task.truth),
                rows=rows,
                planned_rows=method.evaluations(setup.steps),
                time_ratio=seconds / plain,
            )
        )
    half = (len(task) + 1) // 2
    shown = [*range(min(4, half)), *range(half, min(half + 4, len(task)))]
    labels = [f"{task.source_captions[i]} | {task.local_prompts[i]}" for i in shown]
    report.save_sheet(folder / f"{sheet or task.name}.png", {k: v[shown] for k, v in columns.items()}, labels)
    return results


def _left_out(options: argparse.Namespace) -> set[str]:
    if options.methods:
        return set()
    left_out = set() if options.ablations else set(pack_methods.ABLATIONS)
    return left_out if options.injection else left_out | set(injection_methods.NAMES)


def edits(setup: Setup, options: argparse.Namespace) -> list[Edited]:
    """Measure all chosen methods on all chosen tasks."""
    chosen = [METHODS[name] for name in options.methods or METHODS if name not in _left_out(options)]
    results = []
    for name in options.tasks or tasks.NAMES:
        task = tasks.make_task(name, options.count)
        claimed = [method for method in chosen if name in injection_methods.CLAIMS.get(method.name, (name,))]
        results += evaluate_task(setup, task, claimed, options.batch, options.output)
        print(report.edit_table([asdict(r) for r in results if r.task == name]))
    return results
