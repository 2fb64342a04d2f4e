"""What a second edit of an image costs: `python demo/benchmark.py second`.

KSampler's plain run from the inverted noise, an edit without a record, the edit that keeps what it reads, and the one
that reads what is kept, each of the demo model in one process and in turns, so that whatever else the machine does
falls on all of them. Told are evaluations, and the least time of each as a ratio to the plain run's. With --full the
network is a whole SD1.5 UNet with random weights at 512 pixels, in few steps, since only the ratio counts.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

WAYS = ("plain sampling", "edit, keep_source off", "first edit, in RAM", "second edit, in RAM")


def edits_of(pack_module: Any, side: int) -> dict[str, Any]:
    """Methods that read the source, by name, with their defaults; masks cover a quarter of the picture."""
    import torch

    mask = torch.zeros(1, side, side)
    mask[:, side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = 1
    masks = pack_module("attention.masks.edit_masks").edit_masks(mask, "replace or recolour", 0.0)
    return {
        "CPAM": pack_module("attention.methods.cpam").CPAM(masks),
        "FPE": pack_module("attention.methods.fpe").FPE(),
        "MasaCtrl": pack_module("attention.methods.masactrl").MasaCtrl(),
        "Plug-and-Play": pack_module("attention.methods.pnp").PnP(),
    }


def models(full: bool) -> tuple[Any, list[Any], Any]:
    """The host's MODEL, the prompts (source, target) and a latent."""
    import torch
    from bundle import load
    from measure.benchmark_inversions import conditioning, full_size_model

    generator = torch.Generator().manual_seed(0)
    if full:
        prompts = [conditioning(seed) for seed in range(2)]
        return full_size_model(torch.float32, 320), prompts, torch.randn(1, 4, 64, 64, generator=generator)
    model, clip, _ = load.load_demo_model()
    prompts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("", "a blue square")]
    return model, prompts, torch.randn(1, 4, 16, 16, generator=generator)


def measure(full: bool, steps: int, turns: int) -> dict[str, dict[str, tuple[float, int]]]:
    """Seconds, the least of the turns, and evaluations, by method and way."""
    import comfy.samplers
    import torch
    from machine.pack import pack_module

    engine, recorded = pack_module("attention.engine.install"), pack_module("attention.engine.recorded")
    model, prompts, latent = models(full)
    with torch.inference_mode():
        made = pack_module("inversion.ddim_inversion").DDIMInversion(steps)(model, {"samples": latent}, prompts[0])
    inversion = made.inversion
    schedule = tuple(inversion.schedule)
    sampler, counted = comfy.samplers.sampler_object("euler"), Counter()

    def run(patched: Any) -> tuple[float, int]:
        guider = comfy.samplers.CFGGuider(counted.on(patched))
        guider.set_conds(prompts[1], prompts[0])
        guider.set_cfg(4.0)
        counted.rows, start = 0, time.perf_counter()
        with torch.inference_mode():
            guider.sample(torch.zeros_like(latent), latent, sampler, torch.tensor(schedule), disable_pbar=True, seed=0)
        return time.perf_counter() - start, counted.rows

    found: dict[str, dict[str, tuple[float, int]]] = {}
    for name, control in edits_of(pack_module, latent.shape[-1] * 8).items():
        edited = engine.install(model, control, inversion)
        off, kept = (
            engine.pin(edited, inversion, schedule, keeping=keeping)
            for keeping in (None, recorded.Keeping("in RAM", 1 << 40))
        )
        for _ in range(turns):
            recorded.free_records()
            for way, patched in zip(WAYS, (model, off, kept, kept), strict=True):
                seconds, rows = run(patched)
                best = found.setdefault(name, {}).get(way, (seconds, rows))
                found[name][way] = (min(seconds, best[0]), rows)
    return found


class Counter:
    """Counts the rows that a MODEL is called with."""

    def __init__(self) -> None:
        self.rows = 0

    def on(self, model: Any) -> Any:
        """A clone that is counted."""
        from comfy.patcher_extension import WrappersMP

        clone = model.clone()
        clone.add_wrapper(WrappersMP.DIFFUSION_MODEL, self._counted)
        return clone

    def _counted(self, executor: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        self.rows += len(x)
        return executor(x, *args, **kwargs)


def table(found: dict[str, dict[str, tuple[float, int]]]) -> str:
    """Methods against ways: evaluations and the ratio of time to plain sampling's."""
    from measure import report

    rows = []
    for name, ways in found.items():
        plain = ways[WAYS[0]][0]
        rows.append([name, *(f"{rows}, {seconds / plain:.2f}" for seconds, rows in (ways[way] for way in WAYS))])
    return report.markdown(["evaluations, time in plain runs", *WAYS], rows)


def main(arguments: list[str]) -> int:
    """Measure and print the table; with --write also into demo/RESULTS.md; returns the exit code."""
    from bundle import load
    from measure import results

    parser = argparse.ArgumentParser(prog="demo/benchmark.py second", description=__doc__)
    parser.add_argument("--full", action="store_true", help="a full-size SD1.5 UNet with random weights")
    parser.add_argument("--steps", type=int, default=0, help="of the inversion; 20, or 4 with --full")
    parser.add_argument("--turns", type=int, default=3, help="runs of each, of which the fastest counts")
    parser.add_argument("--write", action="store_true", help="put the table into demo/RESULTS.md too")
    parser.add_argument("--output", type=Path, default=Path("build/benchmark_second.md"))
    chosen = parser.parse_args(arguments)
    text = table(measure(chosen.full, chosen.steps or (4 if chosen.full else 20), chosen.turns))
    print(text)
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(text, "utf-8")
    if chosen.write:
        part = "second full" if chosen.full else "second"
        results.write_benchmark(part, arguments, text, None if chosen.full else load.FILE)
    return 0
