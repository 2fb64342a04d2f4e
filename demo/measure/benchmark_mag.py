"""`python demo/benchmark.py mag`: what one guided step of MAG-Edit costs on a full-size SD1.5 UNet of random weights.

Compared are a plain step, a step of an edit without MAG-Edit (one row of the source more), one with MAG-Edit's
iterations as this pack runs them (source once, the UNet left after the last map, conditional rows only), the same with
checkpointing, and the published recipe (source and edit through the whole UNet in every iteration). Work is counted in
floating-point operations, forth and back, and told in evaluations of the UNet. Every case runs in a process of its
own, so that its peak of memory is its own.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from machine.own_process import COSTS, cost_cells, peak, run_cases

CASES = ("plain", "unguided", "published", "MAG-Edit", "MAG-Edit, checkpointed")


def published(pack_module: Any) -> Any:
    """MAG-Edit as its released code runs it: nothing kept from one iteration to the next, nothing left out."""
    mag, source = pack_module("attention.methods.mag.control"), pack_module("attention.engine.source")

    class Published(mag.MAG):
        def acts_on(self, family: Any) -> Any:
            """Read in the last layer too, which is what makes a pass go through the whole UNet."""
            return tuple(replace(act, layers=(*act.layers, family.layers[-1])) for act in super().acts_on(family))

        def before(self, run: Any, state: Any, x: Any, network: Any) -> Any:
            own = self.layers(run.family)
            with network.slopes((*own, run.family.layers[-1])) as slope:
                for _ in range(self.iterations):
                    source.prepare_source(run, network.guider, network.timestep, network.options)
                    slope(x.clone(), lambda maps: self.loss(run, kept(maps, own), self.words)[0].sum())
            return x

    def kept(maps: Any, layers: Any) -> Any:
        return {layer.index: maps[layer.index] for layer in layers}

    return Published


def flop_counter() -> Any:
    """Counts floating-point operations, with those of attention on a CPU, which torch's own table leaves out."""
    import torch
    from torch.utils import flop_counter as counting

    added = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
            lambda q, k, v, *_, **__: counting.sdpa_flop_count(q, k, v)
        ),
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda slope, q, k, v, *_, **__: counting.sdpa_backward_flop_count(slope, q, k, v)
        ),
    }
    return counting.FlopCounterMode(display=False, custom_mapping=added)


def edited(model: Any, record: Any, case: str, chosen: argparse.Namespace) -> Any:
    """A model under CPAM and under what a case takes for MAG-Edit."""
    import torch
    from machine.pack import pack_module

    size = chosen.size
    cpam, masks = pack_module("attention.methods.cpam").CPAM, pack_module("attention.masks.edit_masks").EditMasks
    mask = torch.zeros(1, size, size, dtype=torch.bool)
    mask[:, size // 4 : size // 2, size // 4 : size // 2] = True
    engine, install = pack_module("attention.engine.install"), pack_module("attention.methods.mag.install")
    kind = published(pack_module) if case == "published" else pack_module("attention.methods.mag.control").MAG
    under = cpam(masks(mask, mask, False, mask), normal_share=0.0, localized=False)
    part = kind(
        ((5,),),
        mask,
        iterations=0 if case == "unguided" else chosen.iterations,
        end=1.0,
        blend=1.0,
        checkpointing="checkpointed" in case,
    )
    return install.add_guidance(engine.install(model, under, record), part, record)


def one_step(case: str, chosen: argparse.Namespace) -> dict[str, float]:
    """Run one step of a case twice: with the clock, and with the operations counted."""
    import comfy.model_management
    import comfy.samplers
    import torch
    from machine.pack import pack_module
    from measure.benchmark_inversions import conditioning, full_size_model

    device = comfy.model_management.get_torch_device()
    model = full_size_model(getattr(torch, chosen.dtype), chosen.width)
    rng = torch.Generator().manual_seed(1)
    table = model.get_model_object("model_sampling").sigmas
    clean, low, high = (float(table[place]) for place in (0, 750, 770))
    states = [conditioning(seed) for seed in range(3)]
    size = chosen.size
    record = pack_module("inversion.record").Inversion(
        latents=torch.randn(3, 1, 4, size, size, generator=rng),
        sigmas=(clean, low, high),
        steps=2,
        offset=0,
        family="SD1.x",
        prediction="eps",
        conditioning=states[2],
    )
    if case != "plain":
        model = edited(model, record, case, chosen)

    def run() -> None:
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(states[0], states[1])
        guider.set_cfg(7.5)
        start = record.at(high)
        sampler = comfy.samplers.sampler_object("euler")
        with torch.inference_mode():
            sigmas = torch.tensor([high, low])
            guider.sample(torch.zeros_like(start), start, sampler, sigmas, disable_pbar=True, seed=0)

    comfy.model_management.load_models_gpu([model])
    start = time.perf_counter()
    run()
    # Before the counter runs, which holds on to tensors.
    found = {"seconds": time.perf_counter() - start, "memory": peak(device)}
    with flop_counter() as flops:
        run()
    return {"operations": flops.get_total_flops(), **found}


def per_iteration(found: dict[str, dict[str, float]], case: str, iterations: int) -> float:
    """UNet evaluations that one iteration of a case is worth, forth and back."""
    return (found[case]["operations"] - found["unguided"]["operations"]) / _evaluation(found) / iterations


def _evaluation(found: dict[str, dict[str, float]]) -> float:
    """Operations of one UNet evaluation: the plain step has two."""
    return found["plain"]["operations"] / 2


def whole_edit(found: dict[str, dict[str, float]], iterations: int) -> tuple[float, float]:
    """UNet evaluations of an edit of 50 steps, 25 of them with 15 iterations: here, and as published.

    The published code samples the source with guidance too, one evaluation more in each step.
    """
    step = found["unguided"]["operations"] / _evaluation(found)
    ours, theirs = (per_iteration(found, case, iterations) for case in ("MAG-Edit", "published"))
    return 49 * step + 25 * 15 * ours, 50 * (step + 1) + 25 * 15 * theirs


def table(found: dict[str, dict[str, float]], iterations: int) -> str:
    """The cases side by side: what an iteration adds to the step, in evaluations and in plain steps' time."""
    from measure import report

    rows = []
    for case, values in found.items():
        work = "" if case in ("plain", "unguided") else f"{per_iteration(found, case, iterations):.2f}"
        rows.append([case, work, *cost_cells(values, found["plain"])])
    ours, theirs = whole_edit(found, iterations)
    told = f"An edit of 50 steps with 25 x 15 iterations: {ours:.0f} evaluations, as published {theirs:.0f}."
    return f"{report.markdown(['one step', 'evaluations per iteration', *COSTS], rows)}\n{told}\n"


def main(arguments: Sequence[str]) -> int:
    """Run all cases, or the one that a child process is started for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="demo/benchmark.py mag", description=__doc__)
    parser.add_argument("--iterations", type=int, default=15, help="per step")
    parser.add_argument("--size", type=int, default=64, help="side of the latent, 64 for 512 pixels")
    parser.add_argument("--width", type=int, default=320, help="channels of the first block; 320 is SD1.5")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--write", action="store_true", help="put the table into demo/RESULTS.md too")
    parser.add_argument("--case", choices=CASES, help="only this one, as JSON")
    chosen = parser.parse_args(list(arguments))
    if chosen.case is not None:
        print(json.dumps(one_step(chosen.case, chosen)))
        return 0
    found = run_cases("mag", CASES, arguments)
    if found is None:
        return 1
    text = table(found, chosen.iterations)
    print(text)
    if chosen.write:
        from measure import results

        results.write_benchmark("mag", arguments, text)
    return 0
