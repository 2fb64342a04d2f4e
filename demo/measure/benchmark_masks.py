"""What the size of a mask costs an edit: `python demo/benchmark.py masks`.

Edits of the demo model with the same mask drawn at several sizes, in one process and in turns, so that whatever else
the machine does falls on all of them; told is the least time of each as a ratio to the smallest mask's.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

SIZES = (512, 1024, 4096)
"""Sides of the mask in pixels."""


def controls(pack_module: Any, mask: Any) -> dict[str, Any]:
    """The methods that take a mask, by name, with one for the same place."""
    edit_masks = pack_module("attention.masks.edit_masks").edit_masks
    cpam = pack_module("attention.methods.cpam").CPAM
    masactrl = pack_module("attention.methods.masactrl").MasaCtrl
    background = pack_module("attention.methods.background").ExactBackground
    masks = edit_masks(mask, "replace or recolour", 0.0)
    return {
        "CPAM": cpam(masks),
        "MasaCtrl with masks": masactrl(start=0.0, masks=(masks.source, masks.target)),
        "Exact Background": background(mask > 0.5),
    }


def square(side: int) -> Any:
    """A mask (1, side, side) of the middle."""
    import torch

    mask = torch.zeros(1, side, side)
    mask[:, side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = 1
    return mask


def measure(steps: int, turns: int) -> dict[str, dict[int, float]]:
    """Seconds of an edit by method and side of the mask: the least of the turns."""
    import comfy.samplers
    import torch
    from bundle import load
    from machine.pack import pack_module

    model, clip, _ = load.load_demo_model()
    engine = pack_module("attention.engine.install")
    prompts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("", "a blue square")]
    latent = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    made = pack_module("inversion.ddim_inversion").DDIMInversion(steps)(model, {"samples": latent}, prompts[0])
    inversion = made.inversion
    sampler = comfy.samplers.sampler_object("euler")
    sigmas = torch.tensor(inversion.schedule)
    best: dict[str, dict[int, float]] = {}
    for name in controls(pack_module, square(SIZES[0])):
        for side in [*SIZES] * turns:  # by turns, so that a slow moment of the machine meets every size
            control = controls(pack_module, square(side))[name]
            patched = engine.pin(engine.install(model, control, inversion), inversion, tuple(inversion.schedule))
            guider = comfy.samplers.CFGGuider(patched)
            guider.set_conds(prompts[1], prompts[0])
            guider.set_cfg(4.0)
            start = time.perf_counter()
            guider.sample(torch.zeros_like(latent), latent, sampler, sigmas, disable_pbar=True, seed=0)
            taken = time.perf_counter() - start
            sides = best.setdefault(name, {})
            sides[side] = min(taken, sides.get(side, taken))
    return best


def table(found: dict[str, dict[int, float]]) -> str:
    """Methods against sizes: seconds with the smallest mask, then ratios to them."""
    from measure import report

    first, *others = SIZES
    rows = [
        [name, f"{sides[first]:.2f} s", *(f"{sides[side] / sides[first]:.3f}" for side in others)]
        for name, sides in found.items()
    ]
    return report.markdown(["edit", f"{first} px", *(f"{side} px" for side in others)], rows)


def main(arguments: list[str]) -> int:
    """Measure and print the table; with --write also into demo/RESULTS.md; returns the exit code."""
    import torch
    from bundle import load
    from measure import results

    parser = argparse.ArgumentParser(prog="demo/benchmark.py masks", description=__doc__)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--write", action="store_true", help="put the table into demo/RESULTS.md too")
    parser.add_argument("--output", type=Path, default=Path("build/benchmark_masks.md"))
    chosen = parser.parse_args(arguments)
    with torch.inference_mode():
        text = table(measure(chosen.steps, chosen.turns))
    print(text)
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(text, "utf-8")
    if chosen.write:
        results.write_benchmark("masks", arguments, text, load.FILE)
    return 0
