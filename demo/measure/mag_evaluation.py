"""`python demo/evaluate.py --mag`: MAG-Edit on scenes where words alone do not say which object is meant.

Its tables and sheets set MAG-Edit beside Prompt-to-Prompt, bare, with the same mask, and with the new word's
attention tenfold (everywhere; the paper's baseline: under the mask), and beside the host's own ways.
`--mag-ablations` repeats the paper's ablations: iterations, range of steps, constraint.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import comfy.sample
import torch
from bundle import world
from machine.pack import pack_module
from measure import methods, report
from measure.mag_scenes import NAMES, Local, make_task
from measure.methods import Setup, counted, generate
from scenes import metrics
from torch import Tensor
from tqdm import tqdm

engine = pack_module("attention.engine.install")
install, pin = engine.install, engine.pin
p2p = pack_module("attention.methods.p2p")
mag = pack_module("attention.methods.mag.control")
parts = pack_module("attention.methods.mag.parts")
mag_install = pack_module("attention.methods.mag.install")
constraints = pack_module("attention.methods.mag.constraints")
curve = pack_module("attention.methods.mag.curve")
families = pack_module("host.families")
work = pack_module("host.work").work
read_prompt = pack_module("attention.words.prompt").read_prompt
DDIMInversion = pack_module("inversion.ddim_inversion").DDIMInversion

DETAIL = 2
"""Maps of 8 x 8 for the demo model's latents of 16 x 16: coarser ones hardly tell its objects apart."""
Way = Callable[[Setup, Local, list[Any]], Tensor]
"""From a setup and a task to edited images (B, 3, S, S) in 0..1; curves of guidance are appended to the list."""


@dataclass(frozen=True)
class Recipe:
    """Prompt-to-Prompt with what is put on it, a `Way`; values that are not given are the nodes'.

    Attributes:
        mask: keep the source outside the masks in the last steps. factor: on the new word's attention.
        guidance: settings of MAG-Edit; None for none.
    """

    mask: bool = True
    factor: float = 1.0
    guidance: dict[str, Any] | None = field(default_factory=dict)

    def __call__(self, setup: Setup, task: Local, curves: list[Any]) -> Tensor:
        """All scenes edited, one by one: prompts differ from scene to scene."""
        return torch.cat([edit(setup, task, index, self, curves) for index in range(len(task))])


SPATIAL = {"constraint": constraints.SPATIAL}
RECIPES: dict[str, Way] = {
    "img2img 0.6": lambda setup, task, _: methods.image_to_image(setup, task, 0.6),
    "img2img 0.8": lambda setup, task, _: methods.image_to_image(setup, task, 0.8),
    "inpaint": lambda setup, task, _: methods.inpaint(setup, task),
    "P2P": Recipe(mask=False, guidance=None),
    "P2P, mask": Recipe(guidance=None),
    "P2P, mask, re-weight 10": Recipe(factor=10.0, guidance=None),
    "P2P + MAG-Edit, token ratio": Recipe(),
    "P2P + MAG-Edit, spatial ratio": Recipe(guidance=SPATIAL),
    "P2P + MAG-Edit, early stop": Recipe(guidance=mag_install.PRESETS[mag_install.EARLY]),
}
ABLATIONS: dict[str, dict[str, Way]] = {
    "iterations": {f"{n} iterations": Recipe(guidance={"iterations": n}) for n in (0, 5, 10, 15, 20)},
    "steps": {f"until {end:.0%}": Recipe(guidance={"end": end}) for end in (0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0)},
    "constraint": {"token ratio": Recipe(), "spatial ratio": Recipe(guidance=SPATIAL)},
    "maps": {f"maps at 1/{scale}": Recipe(guidance={"detail": scale}) for scale in (4, 2, 1)},
}
"""The paper's Figs 6, 7 and 8, and which maps are read; on the first task."""


def edit(setup: Setup, task: Local, index: int, recipe: Recipe, curves: list[Any]) -> Tensor:
    """One scene edited: (1, 3, S, S) in 0..1. Prompts differ from scene to scene, so there is no batch."""
    latents = setup.encode(task.source[index : index + 1])
    before, after = task.before[index], task.full_prompts[index]
    inversion = DDIMInversion(setup.steps)(setup.model, {"samples": latents}, setup.text([before])).inversion
    source, target = read_prompt(setup.clip, before), read_prompt(setup.clip, after)
    words = [world.COLOURS[int(colour)] for colour in task.colours[index]]
    weights = [(word, recipe.factor) for word in words] if recipe.factor != 1 else ()
    control = p2p.P2P(source, target, p2p.REFINE, self_window=(0.0, 0.5), weights=weights)
    model = install(setup.model, control, inversion)
    if recipe.mask:
        values = {"detail": DETAIL, **(recipe.guidance if recipe.guidance is not None else {"iterations": 0})}
        drawn = [curve.Curve(word) for word in words]
        for word, mask, of in zip(words, task.masks[index], drawn, strict=True):
            part = mag.MAG(parts.look_up(target, word), parts.drawn(mask[None]), prompt=target, curve=of, **values)
            model = mag_install.add_guidance(model, part, inversion)
        curves.append(drawn)
    model = pin(model, inversion, tuple(inversion.schedule))
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
    """One way on one task.

    Attributes:
        success: share of edits that are there with nothing else recoloured. structure: overlap of the outlines, 0..1.
        background_psnr: dB to the source outside. truth_psnr: dB to the truth.
        evaluations: of the UNet per image, an iteration's pass and its way back counted as what they are worth.
        time_ratio: multiple of a plain run's time.
    """

    task: str
    method: str
    success: float
    structure: float
    background_psnr: float
    truth_psnr: float
    evaluations: float
    time_ratio: float


def passes(curves: Sequence[Any]) -> int:
    """Passes for gradients of a run whose parts were guided together: each step has those of its longest part."""
    most: dict[int, int] = {}
    for of in curves:
        for points in of.steps:
            most[points[0].step] = max(most.get(points[0].step, 0), len(points))
    return sum(most.values())


def measure(setup: Setup, task: Local, ways: dict[str, Way], folder: Path, name: str, plain: float) -> list[Measured]:
    """Run ways on a task; the sheet of its first images is the paper's kind of figure."""
    results, columns = [], {"before": task.source, "truth": task.truth}
    worth = work(families.family_of(setup.model), DETAIL, False) - 1
    for label, way in tqdm(ways.items(), desc=name, leave=False):
        curves: list[Any] = []
        with counted(setup) as (watched, counter):
            start = time.perf_counter()
            images = way(watched, task, curves)
            seconds = (time.perf_counter() - start) / len(task)
        columns[label] = images
        results.append(
            Measured(
                task=name,
                method=label,
                success=sum(task.success(images)) / len(task),
                structure=task.structure(images),
                background_psnr=metrics.mean_psnr(images, task.source, task.kept),
                truth_psnr=metrics.mean_psnr(images, task.truth),
                evaluations=(counter.rows + worth * sum(map(passes, curves))) / len(task),
                time_ratio=seconds / plain,
            )
        )
    shown = slice(0, 8)
    report.save_sheet(folder / f"mag {name}.png", {k: v[shown] for k, v in columns.items()}, task.full_prompts[shown])
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


def table(found: Sequence[dict[str, Any]]) -> str:
    """How well the ways did one task."""
    header = ["edit success", "outlines kept", "PSNR outside", "PSNR to the truth", "UNet evaluations", "time"]
    rows = [
        [
            str(e["method"]),
            report.percent(e["success"]),
            report.percent(e["structure"]),
            f"{e['background_psnr']:.1f} dB",
            f"{e['truth_psnr']:.1f} dB",
            f"{e['evaluations']:.0f}",
            f"{e['time_ratio']:.1f}x",
        ]
        for e in found
    ]
    return report.markdown([str(found[0]["task"]), *header], rows)


def _show(setup: Setup, options: Namespace, parts: dict[str, tuple[Local, dict[str, Way]]]) -> list[dict[str, Any]]:
    plain = plain_seconds(setup, next(iter(parts.values()))[0].full_prompts[0])
    results = []
    for name, (task, recipes) in parts.items():
        found = [asdict(entry) for entry in measure(setup, task, recipes, options.output, name, plain)]
        print(table(found))
        results += found
    return results
