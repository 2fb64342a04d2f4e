"""The measurements of `python demo/evaluate.py`: how well the demo model draws and each method edits."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from bundle import load, transformer
from measure import (
    dpl_evaluation,
    drawing,
    editing,
    flow_inversion_evaluation,
    injection_methods,
    inversion_evaluation,
    mag_evaluation,
    map_evaluation,
    masafusion_evaluation,
    mask_evaluation,
    methods,
    pack_methods,
    probe_evaluation,
    report,
    results,
    turns_evaluation,
)
from measure.methods import METHODS, Setup
from scenes import tasks

Part = Callable[[Setup, argparse.Namespace], tuple[object, str]]
"""From a setup and the options to what was measured, for the results file, and its tables."""


def _edits(setup: Setup, options: argparse.Namespace) -> tuple[object, str]:
    found = [asdict(result) for result in editing.edits(setup, options)]
    return found, report.by_task(report.edit_table, found)


def _variations(setup: Setup, options: argparse.Namespace) -> tuple[object, str]:
    chosen = pack_methods.variations()
    results = [
        result
        for name in pack_methods.VARIED
        for result in editing.evaluate_task(
            setup, tasks.make_task(name, options.count), chosen, options.batch, options.output, f"variations-{name}"
        )
    ]
    found = [asdict(result) for result in results]
    text = report.by_task(report.edit_table, found)
    print(text)
    return found, text


def _turns(setup: Setup, options: argparse.Namespace) -> tuple[object, str]:
    found = turns_evaluation.measure(setup, options.count, options.batch)
    text = turns_evaluation.tables(found)
    print(text)
    return [asdict(turn) for turn in found], text


def _masafusion(setup: Setup, options: argparse.Namespace) -> tuple[object, str]:
    followed, found = masafusion_evaluation.measure(setup, options.count)
    text = masafusion_evaluation.tables(followed, found)
    print(text)
    return [asdict(row) for row in (*followed, *found)], text


def _inversions(setup: Setup, options: argparse.Namespace) -> tuple[object, str]:
    rows = inversion_evaluation.evaluate(setup, options.count, options.batch, options.output)
    return inversion_evaluation.as_results(rows), inversion_evaluation.table(rows)


def _flow_inversions(setup: Setup, options: argparse.Namespace) -> tuple[object, str]:
    rows = list(flow_inversion_evaluation.measure(setup, options.count))
    text = flow_inversion_evaluation.table(rows)
    print(text)
    return [asdict(row) for row in rows], text


def _masks(setup: Setup, options: argparse.Namespace) -> tuple[object, str]:
    found = mask_evaluation.measure(setup, options)
    by_task = [[cost for cost in found if cost.task == name] for name in mask_evaluation.TASKS]
    return [asdict(cost) for cost in found], "\n".join(mask_evaluation.table(costs) for costs in by_task if costs)


def _maps(setup: Setup, options: argparse.Namespace) -> tuple[object, str]:
    found = map_evaluation.measure(setup, options.count)
    text = map_evaluation.tables(found)
    print(text)
    return [asdict(way) for way in found], text


def _mag(setup: Setup, options: argparse.Namespace) -> tuple[object, str]:
    found = mag_evaluation.tables(setup, options)
    return found, report.by_task(mag_evaluation.table, found)


def _mag_ablations(setup: Setup, options: argparse.Namespace) -> tuple[object, str]:
    found = mag_evaluation.ablations(setup, options)
    return found, report.by_task(mag_evaluation.table, found)


def _probe(setup: Setup, options: argparse.Namespace) -> tuple[object, str]:
    demo = probe_evaluation.is_demo(options.model)
    found = probe_evaluation.measure(setup, options.count, options.batch, demo, options.output)
    text = probe_evaluation.tables(found)
    print(text)
    return [asdict(one) for one in found], text


def _dpl(setup: Setup, options: argparse.Namespace) -> tuple[object, str]:
    found = dpl_evaluation.measure(setup, options, results.state(options.model))
    text = dpl_evaluation.tables(found)
    print(text)
    return [asdict(one) for one in found], text


PARTS: dict[str, Part] = {
    "edits": _edits,
    "variations": _variations,
    "turns": _turns,
    "masafusion": _masafusion,
    "inversions": _inversions,
    "flow_inversions": _flow_inversions,
    "masks": _masks,
    "maps": _maps,
    "mag": _mag,
    "mag_ablations": _mag_ablations,
    "probe": _probe,
    "dpl": _dpl,
}
"""By the option that asks for it, which also names its section of demo/RESULTS.md. The model's own bar comes before
them; without any option it and the edits are measured."""


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo/evaluate.py", description=__doc__)
    parser.add_argument("--model-bar", action="store_true", help="how well the model draws")
    parser.add_argument("--edits", action="store_true", help="how well each method edits")
    parser.add_argument("--variations", action="store_true", help="what shares of fresh noise make of CPAM")
    parser.add_argument("--turns", action="store_true", help="what five edits in a row leave of the image")
    parser.add_argument("--masafusion", action="store_true", help="shapes changed by a sketch, and the demo adapter")
    parser.add_argument("--inversions", action="store_true", help="how well each inversion finds its image again")
    parser.add_argument("--flow-inversions", action="store_true", help="round trips of a transformer's inversions")
    parser.add_argument("--masks", action="store_true", help="what faults of the mask cost CPAM")
    parser.add_argument("--maps", action="store_true", help="how well attention maps find objects; only if asked for")
    parser.add_argument("--mag", action="store_true", help="MAG-Edit among objects of one shape")
    parser.add_argument("--mag-ablations", action="store_true", help="MAG-Edit with other settings, as in its paper")
    parser.add_argument("--probe", action="store_true", help="what attention maps know of words; any checkpoint")
    parser.add_argument("--dpl", action="store_true", help="Dynamic Prompt Learning on scenes of two objects")
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
    parser.add_argument("--write", action="store_true", help="put the tables into demo/RESULTS.md too")
    parser.add_argument("--model", type=Path, default=load.FILE)
    parser.add_argument("--output", type=Path, default=Path("build/evaluation"))
    return parser.parse_args(arguments)


def _section(part: str, options: argparse.Namespace) -> str:
    """The section of demo/RESULTS.md: edits with more methods than CPAM have one of their own."""
    more = [name for name in ("injection", "ablations") if part == "edits" and getattr(options, name)]
    return " ".join([part, *more]).replace("_", " ")


def _setup(options: argparse.Namespace) -> Setup:
    load_file = probe_evaluation.load_any if options.probe else transformer.load_demo_file
    return Setup(
        *load_file(options.model),
        steps=options.steps,
        guidance=methods.GUIDANCE if options.guidance is None else options.guidance,
        sampler=options.sampler,
        scheduler=options.scheduler,
        seed=options.seed,
    )


def measure_all(
    setup: Setup, options: argparse.Namespace, keep: Callable[[str, str], None]
) -> tuple[dict[str, Any], bool]:
    """Everything that was asked for: results for the file, and whether the model missed a bar.

    Args:
        keep: called with a section's name and its tables as soon as these are there.
    """
    found: dict[str, Any] = {}
    missed = False
    everything = not (options.model_bar or any(getattr(options, part) for part in PARTS))
    if options.model_bar or everything:
        bar = drawing.model_bar(setup, options)
        print(bar.text())
        keep("model bar", bar.text())
        found["model"], missed = bar.as_results(), bar.missed
        setup = replace(setup, guidance=bar.guidance)
    for part, measure in PARTS.items():
        if getattr(options, part) or (everything and part == "edits"):
            found[part.replace("_", " ")], text = measure(setup, options)
            keep(_section(part, options), text)
    return found, missed


@torch.inference_mode()
def main(arguments: list[str]) -> int:
    """Measure what was asked for; returns the exit code, 1 when the model misses a bar."""
    pack_methods.register(ablations=True)
    injection_methods.register()
    options = _options(arguments)
    logging.getLogger().setLevel(logging.WARNING)
    try:
        options.model = probe_evaluation.file_of(options.model) if options.probe else options.model
        setup = _setup(options)
    except load.DemoModelError as error:
        print(error)
        return 2
    options.output.mkdir(parents=True, exist_ok=True)
    if options.fpe_layers:
        print(f"Written: {injection_methods.layer_study(setup, options.count, options.output)}")
        return 0
    state = results.state(options.model)

    def keep(section: str, text: str) -> None:
        if options.write:
            results.write(section, results.command_of("demo/evaluate.py", arguments), state, text)

    found, missed = measure_all(setup, options, keep)
    used = {k: v for k, v in vars(options).items() if k not in ("model", "output", "write")}
    report.save_json(options.output / "results.json", {"options": used, **found})
    print(f"Written to {options.output}")
    return 1 if missed else 0
