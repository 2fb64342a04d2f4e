"""Another shape by a sketch: `python demo/evaluate.py --masafusion`.

How well the demo adapter makes the model follow outlines; and MaSaFusion and other methods, each without a condition
and with the true result's outlines (the demo adapter on what they sample), on shapes that change where they are and at
another place. Image by image, so that all have the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from bundle import world
from bundle.adapter import load_demo_adapter
from bundle.sketch import outlines
from bundle.world import Scenes
from machine.pack import pack_module
from measure import report
from measure.injected import install, invert, sample_edited
from measure.methods import METHODS, Setup, counted, generate
from measure.pack_methods import PAPER, masks_of
from scenes import metrics, reader, shape_tasks, tasks
from scenes.tasks import Task
from torch import Tensor
from tqdm import tqdm

MaSaFusion = pack_module("attention.methods.masafusion").MaSaFusion

SKETCH = ", sketch"
OTHERS = ("MasaCtrl", "Prompt-to-Prompt", "FPE", "CPAM", "inpaint")
LARGER, SMALLER = 2, 1
"""Latent cells by which a region is too large or too small, on each side (Figure 7)."""
SAID = ("nothing", "the ground", "all")
"""What the captions say from which the adapter's pictures are drawn."""

Run = Callable[[Setup, Task], Tensor]


@dataclass(frozen=True)
class Reshaped:
    """How well one way did one task: shares of 0..1, dB, mean differences to the true image in 0..1, and UNet rows."""

    task: str
    method: str
    success: float
    l1: float
    l2: float
    background_psnr: float
    rows: float


@dataclass(frozen=True)
class Followed:
    """How well drawings follow outlines that they are given, or not given.

    Attributes:
        said: of SAID. sketch: whether the adapter had the outlines.
        overlap: of what is drawn with what the outlines enclose, intersection over union.
        right: share of the scenes of which all objects, and the ground, are what the caption's scene has.
    """

    said: str
    sketch: bool
    overlap: float
    right: float


def sketched(setup: Setup, control: Any, scenes: Scenes) -> Setup:
    """The setup with a control, the outlines of scenes for its hint."""
    return replace(setup, control=control.copy().set_cond_hint(outlines(scenes).expand(-1, 3, -1, -1)))


def fuse(setup: Setup, task: Task, intermediate: bool = True) -> Tensor:
    """MaSaFusion with its node's settings, and captions of the whole images."""
    inversion = invert(setup, task, task.source_captions)
    control = MaSaFusion(masks_of(task, PAPER).changed, intermediate, setup.seed)
    model = install(setup.model, control, inversion)
    return sample_edited(setup, model, inversion, setup.text(task.full_prompts))


def _resized(cells: int) -> Run:
    """MaSaFusion in a region that is larger by so many cells on each side, or smaller."""

    def run(setup: Setup, task: Task) -> Tensor:
        change, pixels = (metrics.dilate, cells) if cells > 0 else (metrics.erode, -cells)
        return fuse(setup, replace(task, mask=change(task.mask, pixels * tasks.CELL)))

    return run


def ways() -> list[tuple[str, Run, bool]]:
    """Each with its name, and whether it has the sketch."""
    plain: dict[str, Run] = {
        "MaSaFusion": fuse,
        "MaSaFusion, no intermediate image": lambda setup, task: fuse(setup, task, False),
        **{name: METHODS[name].run for name in OTHERS},
    }
    both = [(name + mark, run, bool(mark)) for name, run in plain.items() for mark in ("", SKETCH)]
    regions = {f"{LARGER} cells larger": _resized(LARGER), f"{SMALLER} cell smaller": _resized(-SMALLER)}
    return both + [(f"MaSaFusion{SKETCH}, region {how}", run, True) for how, run in regions.items()]


def measure_ways(setup: Setup, control: Any, task: Task) -> list[Reshaped]:
    """All ways on a task."""
    found = []
    for name, run, by_sketch in tqdm(ways(), desc=task.name, leave=False):
        images = []
        with counted(setup) as (counting, counter):
            for i in range(len(task)):
                one, seeded = task[i : i + 1], replace(counting, seed=setup.seed + i)
                images.append(run(sketched(seeded, control, one.edited) if by_sketch else seeded, one))
        image = torch.cat(images)
        found.append(
            Reshaped(
                task=task.name,
                method=name,
                success=report.share(task.success(image)),
                l1=float((image - task.truth).abs().mean()),
                l2=float(metrics.mean_square(image, task.truth).mean()),
                background_psnr=metrics.mean_psnr(image, task.source, task.kept),
                rows=counter.rows / len(task),
            )
        )
    return found


def measure_following(setup: Setup, control: Any, scenes: Scenes) -> list[Followed]:
    """Drawings of scenes by what captions say of them, with and without the adapter."""
    grounds = [world.caption([], ground) for ground in scenes.background.tolist()]
    captions = dict(zip(SAID, ([""] * len(scenes), grounds, world.full_captions(scenes)), strict=True))
    enclosed, found = world.masks(scenes).amax(1), []
    for said, prompts in captions.items():
        for by_sketch in (False, True):
            images = []
            for i, prompt in enumerate(prompts):
                seeded = replace(setup, seed=setup.seed + i)
                with_it = sketched(seeded, control, scenes[i : i + 1]) if by_sketch else seeded
                images.append(generate(with_it, [prompt], world.SIZE))
            image = torch.cat(images)
            overlap = float(metrics.overlap(_drawn(image), enclosed).mean())
            right = report.share(tasks.show_scenes(scenes, image))
            found.append(Followed(said, by_sketch, overlap, right))
    return found


def _drawn(images: Tensor) -> Tensor:
    """Where images (B, 3, S, S) show anything but their ground (B, S, S), 1 there."""
    found = torch.zeros(len(images), *images.shape[-2:])
    for where, reading in zip(found, reader.read_all(images), strict=True):
        for thing in reading.objects:
            where[torch.from_numpy(thing.mask)] = 1
    return found


def measure(setup: Setup, count: int) -> tuple[list[Followed], list[Reshaped]]:
    """The adapter on `count` scenes, and all ways on as many scenes of each task."""
    control = load_demo_adapter()
    chosen = [shape_tasks.make_shape_task(name, count) for name in shape_tasks.SHAPE_TASKS]
    followed = measure_following(setup, control, chosen[-1].edited)
    return followed, [result for task in chosen for result in measure_ways(setup, control, task)]


def tables(followed: Sequence[Followed], found: Sequence[Reshaped]) -> str:
    """A table of the adapter and one for each task, as Markdown."""
    lines = [
        [row.said, "yes" if row.sketch else "no", report.percent(row.overlap), report.percent(row.right)]
        for row in followed
    ]
    header = ["the caption says", "outlines", "IoU with what they enclose", "all as the scene has it"]
    return report.markdown(header, lines) + "\n" + report.by_task(_table, [asdict(row) for row in found])


def _table(rows: list[dict[str, Any]]) -> str:
    header = [rows[0]["task"], "edit success", "L1", "L2", "background PSNR", "UNet rows"]
    lines = [
        [
            row["method"],
            report.percent(row["success"]),
            f"{row['l1']:.4f}",
            f"{row['l2']:.4f}",
            f"{row['background_psnr']:.1f} dB",
            f"{row['rows']:g}",
        ]
        for row in rows
    ]
    return report.markdown(header, lines)
