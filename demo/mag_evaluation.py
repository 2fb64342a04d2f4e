"""`python demo/evaluate.py --mag`: MAG-Edit on scenes where words alone do not say which object is meant.

Its tables and sheets set MAG-Edit beside Prompt-to-Prompt, bare, with the same mask, and with the new word's
attention tenfold; `--mag-ablations` repeats the paper's ablations: iterations, range of steps, constraint.
"""

from __future__ import annotations

import time
from argparse import Namespace
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import comfy.sample
import metrics
import reader
import report
import tasks
import torch
import world
from methods import Setup, counted, generate
from pack import pack_module
from torch import Tensor
from tqdm import tqdm
from world import Scenes

engine = pack_module("attention.engine")
p2p = pack_module("attention.p2p")
mag = pack_module("attention.mag")
mag_install = pack_module("attention.mag_install")
constraints = pack_module("attention.constraints")
read_prompt = pack_module("attention.words").read_prompt
ddim_inversion = pack_module("inversion.run").ddim_inversion

NAMES = ("one of two", "a part", "two at once")
SEED = 777_000_000
INSIDE = 0.5
"""Least share of a mask's pixels that must have come to the new colour."""
DETAIL = 2
"""Maps of 8 x 8 for the demo model's latents of 16 x 16: coarser ones hardly tell its objects apart."""


@dataclass(frozen=True)
class Local:
    """Edits of colours at places, on B scenes of two objects of one shape, with K masks each.

    Attributes:
        source, truth: (B, 3, S, S) in 0..1, before and after.
        before, after: captions. colours: (B, K) the new colours. masks: (B, K, S, S) of 0 and 1.
        kept: (B, 1, S, S) of 0 and 1, where nothing may change.
    """

    name: str
    source: Tensor
    truth: Tensor
    before: list[str]
    after: list[str]
    colours: Tensor
    masks: Tensor
    kept: Tensor

    def __len__(self) -> int:
        return len(self.source)

    def success(self, images: Tensor) -> list[bool]:
        """For each image (B, 3, S, S) whether all its masks show their new colour."""
        return [
            all(
                reader.colour_share(image, mask, int(colour)) >= INSIDE
                for mask, colour in zip(self.masks[i], self.colours[i], strict=True)
            )
            for i, image in enumerate(images)
        ]


def twins(count: int, seed: int) -> Scenes:
    """Scenes of two objects of the same shape and of different colours."""
    scenes = world.sample_scenes(count, seed, objects=2, held_out=False)
    shapes, colours = scenes.shape.clone(), scenes.colour.clone()
    shapes[:, 1] = shapes[:, 0]
    same = colours[:, 0] == colours[:, 1]
    colours[same, 1] = (colours[same, 1] + 1) % len(world.COLOURS)
    return replace(scenes, shape=shapes, colour=colours)


def _new_colours(scenes: Scenes, slots: int) -> Tensor:
    """(B, slots) colours that the scene does not have yet, each other than the ones before."""
    found = []
    for old in scenes.colour.tolist():
        free = [colour for colour in range(len(world.COLOURS)) if colour not in old]
        found.append(free[:slots])
    return torch.tensor(found)


def make_task(name: str, count: int) -> Local:
    """A task of NAMES on the same scenes on every machine.

    - one of two: one of two objects of one shape gets a new colour.
    - a part: the left half of one of them does.
    - two at once: both do, each its own.
    """
    scenes = twins(count, SEED + NAMES.index(name))
    slots = 2 if name == "two at once" else 1
    colours, objects = _new_colours(scenes, slots), world.masks(scenes)
    edited = scenes
    for slot in range(slots):
        edited = edited.with_object(slot, colour=colours[:, slot])
    source, truth, masks = world.render(scenes), world.render(edited), objects[:, :slots].float()
    if name == "a part":
        left = torch.arange(world.SIZE)[None, None, None] < (scenes.centre[:, 0, :1, None, None] * world.SIZE)
        masks = masks * left
        truth = torch.where(masks > 0, truth, source)
    kept = 1 - metrics.dilate(masks.amax(1, keepdim=True), tasks.REACH)
    captions = [world.full_captions(s) for s in (scenes, edited)]
    return Local(name, source, truth, captions[0], captions[1], colours, masks, kept)


@dataclass(frozen=True)
class Recipe:
    """Prompt-to-Prompt with what is put on it; values that are not given are the nodes'.

    Attributes:
        mask: keep the source outside the masks in the last steps. factor: on the new word's attention.
        guidance: settings of MAG-Edit; None for none.
    """

    mask: bool = True
    factor: float = 1.0
    guidance: dict[str, Any] | None = field(default_factory=dict)


SPATIAL = {"constraint": constraints.SPATIAL}
RECIPES = {
    "P2P": Recipe(mask=False, guidance=None),
    "P2P, mask": Recipe(guidance=None),
    "P2P, mask, re-weight 10": Recipe(factor=10.0, guidance=None),
    "P2P + MAG-Edit, token ratio": Recipe(),
    "P2P + MAG-Edit, spatial ratio": Recipe(guidance=SPATIAL),
    "P2P + MAG-Edit, early stop": Recipe(guidance=mag_install.PRESETS[mag_install.EARLY]),
}
ABLATIONS: dict[str, dict[str, Recipe]] = {
    "iterations": {f"{n} iterations": Recipe(guidance={"iterations": n}) for n in (0, 5, 10, 15, 20)},
    "steps": {f"until {end:.0%}": Recipe(guidance={"end": end}) for end in (0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0)},
    "constraint": {"token ratio": Recipe(), "spatial ratio": Recipe(guidance=SPATIAL)},
    "maps": {f"maps at 1/{scale}": Recipe(guidance={"detail": scale}) for scale in (4, 2, 1)},
}
"""The paper's Figs 6, 7 and 8, and which maps are read; on the first task."""


def edit(setup: Setup, task: Local, index: int, recipe: Recipe) -> Tensor:
    """One scene edited: (1, 3, S, S) in 0..1. Prompts differ from scene to scene, so there is no batch."""
    latents = setup.encode(task.source[index : index + 1])
    before, after = task.before[index], task.after[index]
    inversion = ddim_inversion(setup.model, {"samples": latents}, setup.text([before]), setup.steps, 0)
    source, target = read_prompt(setup.clip, before), read_prompt(setup.clip, after)
    words = [world.COLOURS[int(colour)] for colour in task.colours[index]]
    weights = [(word, recipe.factor) for word in words] if recipe.factor != 1 else ()
    control = p2p.P2P(source, target, p2p.REFINE, self_window=(0.0, 0.5), weights=weights)
    model = engine.install(setup.model, control, inversion)
    if recipe.mask:
        values = {"detail": DETAIL, **(recipe.guidance if recipe.guidance is not None else {"iterations": 0})}
        for word, mask in zip(words, task.masks[index], strict=True):
            part = mag.MAG(mag.look_up(target, word), mag.drawn(mask[None]), length=target.length, **values)
            model = mag_install.add_guidance(model, part, inversion)
    model = engine.pin(model, inversion, tuple(inversion.schedule))
    empty = torch.zeros_like(latents)
    edited = comfy.sample.sample(
        model,
        empty,
        setup.steps,
        setup.guidance,
        setup.sampler,
        setup.scheduler,
        setup.text([after]),
        setup.text([""]),
        empty,
        disable_pbar=True,
        seed=setup.seed,
    )
    return setup.decode(edited)


@dataclass(frozen=True)
class Measured:
    """One recipe on one task: share of edits that are there, dB to the source outside, dB to the truth, and cost.

    Rows are those that enter the UNet: an iteration's row counts one, though it is left early and then comes back.
    """

    task: str
    method: str
    success: float
    background_psnr: float
    truth_psnr: float
    rows: float
    time_ratio: float


def measure(
    setup: Setup, task: Local, recipes: dict[str, Recipe], folder: Path, name: str, plain: float
) -> list[Measured]:
    """Run recipes on a task; the sheet of its first images is the paper's kind of figure."""
    results, columns = [], {"before": task.source, "truth": task.truth}
    for label, recipe in tqdm(recipes.items(), desc=name, leave=False):
        with counted(setup) as (watched, counter):
            start = time.perf_counter()
            images = torch.cat([edit(watched, task, index, recipe) for index in range(len(task))])
            seconds = (time.perf_counter() - start) / len(task)
        columns[label] = images
        results.append(
            Measured(
                task=name,
                method=label,
                success=sum(task.success(images)) / len(task),
                background_psnr=metrics.mean_psnr(images, task.source, task.kept),
                truth_psnr=metrics.mean_psnr(images, task.truth),
                rows=counter.rows / len(task),
                time_ratio=seconds / plain,
            )
        )
    shown = slice(0, 8)
    report.save_sheet(folder / f"mag {name}.png", {k: v[shown] for k, v in columns.items()}, task.after[shown])
    return results


def plain_seconds(setup: Setup, prompt: str) -> float:
    """Seconds of a plain text-to-image run of one image."""
    generate(setup, [prompt], world.SIZE)
    start = time.perf_counter()
    generate(setup, [prompt], world.SIZE)
    return time.perf_counter() - start


def tables(setup: Setup, options: Namespace) -> list[dict[str, Any]]:
    """MAG-Edit beside its baselines on all tasks, as tables and sheets; returns what was measured."""
    return _show(setup, options, {name: (make_task(name, options.count), RECIPES) for name in NAMES})


def ablations(setup: Setup, options: Namespace) -> list[dict[str, Any]]:
    """The paper's ablations on the first task, as tables and sheets; returns what was measured."""
    task = make_task(NAMES[0], options.count)
    return _show(setup, options, {name: (task, recipes) for name, recipes in ABLATIONS.items()})


def _show(setup: Setup, options: Namespace, parts: dict[str, tuple[Local, dict[str, Recipe]]]) -> list[dict[str, Any]]:
    plain = plain_seconds(setup, next(iter(parts.values()))[0].after[0])
    results = []
    for name, (task, recipes) in parts.items():
        found = [asdict(entry) for entry in measure(setup, task, recipes, options.output, name, plain)]
        print(report.edit_table(found))
        results += found
    return results
