"""The measurements of `python demo/evaluate.py`: how well the demo model draws and each method edits."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from bundle import load, world
from measure import (
    injection_methods,
    inversion_evaluation,
    mag_evaluation,
    map_evaluation,
    mask_evaluation,
    methods,
    pack_methods,
    report,
)
from measure.methods import METHODS, Method, Setup
from scenes import metrics, reader, tasks
from scenes.tasks import Task
from torch import Tensor
from tqdm import tqdm

GUIDANCES = (2.0, 3.0, 4.0, 5.0, 7.5)
PROMPT_SEED = 444_000_000
PARTS = ("model_bar", "edits", "inversions", "masks", "maps", "mag", "mag_ablations")
"""Options that choose what is measured; without any, the model and the edits."""
BARS = {"one object": 0.95, "two objects": 0.85, "background": 0.95, "recoloured by inpainting": 0.90}
"""The least share, 0..1, with which the demo model is good enough to show edits on."""


@dataclass(frozen=True)
class Drawn:
    """How well the model draws what captions say, as shares in 0..1 of the images."""

    guidance: float
    one_object: float
    """The object of captions with one is found."""
    two_objects: float
    """Both objects of captions with two are found."""
    background: float
    """The ground has the colour that the caption says."""
    invented: float
    """There is something that the caption does not name."""


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


def _batches(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def named_things(scenes: world.Scenes, index: int) -> list[tuple[int, int]]:
    """Shape and colour of the objects of one scene."""
    pairs = zip(scenes.shape[index].tolist(), scenes.colour[index].tolist(), strict=True)
    return [(shape, colour) for shape, colour in pairs if shape != world.NOTHING]


def judge_drawings(guidance: float, scenes: world.Scenes, images: Tensor) -> Drawn:
    """Compare images (B, 3, S, S) in 0..1 with the scenes whose captions they were drawn from."""
    found: dict[int, list[bool]] = {1: [], 2: []}
    grounds, invented = [], []
    for index, image in enumerate(images):
        reading, wanted = reader.read(image), named_things(scenes, index)
        seen = [(thing.shape, thing.colour) for thing in reading.objects]
        found[len(wanted)].append(all(thing in seen for thing in wanted))
        grounds.append(reading.background == int(scenes.background[index]))
        invented.append(any(thing not in wanted for thing in seen) or len(seen) > len(wanted))
    return Drawn(guidance, _share(found[1]), _share(found[2]), _share(grounds), _share(invented))


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else float("nan")


def draw(setup: Setup, count: int, batch: int, folder: Path) -> Drawn:
    """Let the model draw captions of held-out scenes, half of them with two objects."""
    one = world.sample_scenes(count - count // 2, PROMPT_SEED, objects=1, held_out=True)
    two = world.sample_scenes(count // 2, PROMPT_SEED + 1, objects=2, held_out=True)
    scenes = tasks.join(one, two)
    prompts = world.full_captions(scenes)
    images = [
        methods.generate(replace(setup, seed=setup.seed + part.start), prompts[part], world.SIZE)
        for part in tqdm(list(_batches(count, batch)), desc=f"drawing at {setup.guidance:g}", leave=False)
    ]
    drawings = torch.cat(images)
    shown = [*range(min(12, len(one))), *range(len(one), min(len(one) + 12, count))]
    report.save_grid(folder / f"drawings {setup.guidance:g}.png", drawings[shown], [prompts[i] for i in shown])
    return judge_drawings(setup.guidance, scenes, drawings)


def run_method(setup: Setup, method: Method, task: Task, batch: int) -> tuple[Tensor, float, float]:
    """Images (B, 3, S, S), counted UNet rows per image and seconds per image of one method."""
    images: list[Tensor] = []
    with methods.counted(setup) as (counted, counter):
        start = time.perf_counter()
        for part in _batches(len(task), batch):
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
                success=_share(task.success(images)),
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


def model_bar(setup: Setup, options: argparse.Namespace) -> tuple[float, dict[str, object]]:
    """Measure the model itself. Returns the best guidance and what was measured."""
    guidances = GUIDANCES if options.guidance is None else (options.guidance,)
    drawn = [draw(replace(setup, guidance=g), options.prompts, options.batch, options.output) for g in guidances]
    best = max(drawn, key=lambda d: d.one_object + d.two_objects + d.background)
    task = tasks.make_task("recolour", options.count)
    at_best = replace(setup, guidance=best.guidance)
    images = run_method(at_best, METHODS["inpaint"], task, options.batch)[0]
    shares = {
        "one object": best.one_object,
        "two objects": best.two_objects,
        "background": best.background,
        "recoloured by inpainting": _share(task.success(images)),
    }
    print(report.drawing_table([asdict(d) for d in drawn]))
    print(f"At guidance {best.guidance:g}:\n")
    print(report.bar_table(shares, BARS))
    measured = {"drawn": [asdict(d) for d in drawn], "best guidance": best.guidance, "shares": shares}
    return best.guidance, measured


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


def mask_faults(setup: Setup, options: argparse.Namespace) -> list[mask_evaluation.Cost]:
    """Measure what faults of the mask cost, with and without refinement."""
    results = []
    for name in (name for name in mask_evaluation.TASKS if name in (options.tasks or tasks.NAMES)):
        task = mask_evaluation.make_task(name, options.count)
        chosen = mask_evaluation.methods_of()
        edited = evaluate_task(setup, task, chosen, options.batch, options.output, sheet=f"masks {name}")
        found = mask_evaluation.costs(task, {e.method: (e.success, e.background_psnr) for e in edited})
        print(mask_evaluation.table(found))
        results += found
    return results


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo/evaluate.py", description=__doc__)
    parser.add_argument("--model-bar", action="store_true", help="how well the model draws")
    parser.add_argument("--edits", action="store_true", help="how well each method edits")
    parser.add_argument("--inversions", action="store_true", help="how well each inversion finds its image again")
    parser.add_argument("--masks", action="store_true", help="what faults of the mask cost CPAM")
    parser.add_argument("--maps", action="store_true", help="how well attention maps find objects; only if asked for")
    parser.add_argument("--mag", action="store_true", help="MAG-Edit among objects of one shape")
    parser.add_argument("--mag-ablations", action="store_true", help="MAG-Edit with other settings, as in its paper")
    parser.add_argument("--count", type=int, default=tasks.COUNT, help="scenes per task")
    parser.add_argument("--prompts", type=int, default=256, help="captions to draw")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--guidance", type=float, help=f"default: the best of a sweep, or {methods.GUIDANCE:g}")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sampler", default="euler")
    parser.add_argument("--scheduler", default="normal")
    parser.add_argument("--tasks", nargs="+", choices=tasks.NAMES, help="default: all")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), help="default: all")
    parser.add_argument("--ablations", action="store_true", help="also CPAM with one setting changed at a time")
    parser.add_argument("--injection", action="store_true", help="also FPE, MasaCtrl, Plug-and-Play, Prompt-to-Prompt")
    parser.add_argument("--fpe-layers", action="store_true", help="only a figure of FPE with different layers")
    parser.add_argument("--model", type=Path, default=load.FILE)
    parser.add_argument("--output", type=Path, default=Path("build/evaluation"))
    return parser.parse_args(arguments)


@torch.inference_mode()
def main(arguments: list[str]) -> int:
    """Measure what was asked for; returns the exit code, 1 when the model misses a bar."""
    pack_methods.register(ablations=True)
    injection_methods.register()
    options = _options(arguments)
    everything = not any(getattr(options, part) for part in PARTS)
    logging.getLogger().setLevel(logging.WARNING)
    try:
        model, clip, vae = load.load_demo_model(options.model)
    except load.DemoModelError as error:
        print(error)
        return 2
    options.output.mkdir(parents=True, exist_ok=True)
    setup = Setup(
        model,
        clip,
        vae,
        steps=options.steps,
        guidance=methods.GUIDANCE if options.guidance is None else options.guidance,
        sampler=options.sampler,
        scheduler=options.scheduler,
        seed=options.seed,
    )
    if options.fpe_layers:
        print(f"Written: {injection_methods.layer_study(setup, options.count, options.output)}")
        return 0
    used = {k: v for k, v in vars(options).items() if k not in ("model", "output")}
    results: dict[str, object] = {"options": used}
    missed = False
    if options.model_bar or everything:
        guidance, measured = model_bar(setup, options)
        setup = replace(setup, guidance=guidance)
        results["model"] = measured
        shares = measured["shares"]
        missed = isinstance(shares, dict) and any(not shares[name] >= bar for name, bar in BARS.items())
    if options.edits or everything:
        results["edits"] = [asdict(result) for result in edits(setup, options)]
    if options.inversions:
        rows = inversion_evaluation.evaluate(setup, options.count, options.batch, options.output)
        results["inversions"] = inversion_evaluation.as_results(rows)
    if options.masks:
        results["masks"] = [asdict(cost) for cost in mask_faults(setup, options)]
    if options.maps:
        found = map_evaluation.measure(setup, options.count)
        print(map_evaluation.tables(found))
        results["maps"] = [asdict(way) for way in found]
    if options.mag:
        results["mag"] = mag_evaluation.tables(setup, options)
    if options.mag_ablations:
        results["mag ablations"] = mag_evaluation.ablations(setup, options)
    report.save_json(options.output / "results.json", results)
    print(f"Written to {options.output}")
    return 1 if missed else 0
