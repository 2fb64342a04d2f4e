"""Time and memory of each inversion on a full-size SD1.5 UNet: `python demo/benchmark.py inversions`.

The weights are random, so nothing has to be downloaded; what an evaluation costs does not depend on them. Everything
is a ratio to the host's own sampler: one guided step of euler, two evaluations. Every case runs in a process of its
own, so that its peak of memory is its own.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

SD15 = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "use_linear_in_transformer": False,
    "use_spatial_transformer": True,
    "legacy": False,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
    "adm_in_channels": None,
    "context_dim": 768,
    "num_heads": 8,
    "num_head_channels": -1,
}
"""The UNet of SD1.5 in the host's terms."""


def full_size_model(dtype: Any, width: int) -> Any:
    """A host MODEL with random weights.

    Args:
        width: channels of the first block; 320 is SD1.5.
    """
    import comfy.model_base
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models
    import torch

    config = comfy.supported_models.SD15({**SD15, "model_channels": width, "dtype": dtype})
    config.unet_config |= {"num_heads": 8, "num_head_channels": -1}
    model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.EPS, device="cpu").eval()
    rng = torch.Generator().manual_seed(0)
    for name, weight in model.diffusion_model.named_parameters():
        if weight.ndim > 1:
            weight.data.normal_(0, 1 / weight[0].numel() ** 0.5, generator=rng)
        else:
            weight.data.fill_(1.0 if name.endswith("weight") else 0.0)
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


def conditioning(seed: int) -> list[Any]:
    """CONDITIONING with random states in place of an encoded text."""
    import torch

    return [[torch.randn(1, 77, SD15["context_dim"], generator=torch.Generator().manual_seed(seed)), {}]]


PLAIN = "plain sampler, euler"
CASES = (
    PLAIN,
    "DDIM inversion",
    "fixed point, 5 iterations",
    "direct inversion at half strength",
    "null text, 1 update",
    "null text, 1 update, saving memory",
)


def run_case(name: str, model: Any, latent: Any, steps: int) -> int:
    """Run one of CASES on a model; returns the backward evaluations, of which the model's counter knows nothing."""
    import comfy.sample
    import comfy.samplers
    import torch
    from machine.pack import pack_module

    positive, negative = conditioning(1), conditioning(2)
    if name == "DDIM inversion":
        pack_module("inversion.ddim_inversion").DDIMInversion(steps + 1)(model, {"samples": latent}, positive)
        return 0
    inversion = stored(latent, positive, steps)
    if name == PLAIN:
        sampler, sigmas = comfy.samplers.sampler_object("euler"), torch.tensor(inversion.schedule)
        noise = torch.zeros_like(latent)
        comfy.sample.sample_custom(
            model, noise, 7.5, sampler, sigmas, positive, negative, latent, disable_pbar=True, seed=0
        )
        return 0
    improvement, guidance = improvement_of(name)
    return improvement(model, inversion, negative, guidance).cost.backward


def improvement_of(name: str) -> tuple[Any, float]:
    """The improvement of one of CASES, and the guidance that it is made for."""
    from machine.pack import pack_module

    if name.startswith("fixed point"):
        return pack_module("inversion.fixed_point").FixedPointInversion(tolerance=0.0, iterations=5), 1.0
    if name.startswith("direct"):
        return pack_module("inversion.direct").DirectInversion(0.5), 7.5
    null_text = pack_module("inversion.null_text").NullTextInversion
    return null_text(inner=1, early_stop=0.0, checkpointing=name.endswith("saving memory")), 7.5


def stored(latent: Any, source: Any, steps: int) -> Any:
    """An inversion as DDIM would have left it, of noise: what it holds does not matter to what it costs."""
    import torch
    from machine.pack import pack_module

    sigmas = torch.linspace(0.03, 14.6, steps + 1).tolist()
    rng = torch.Generator().manual_seed(4)
    latents = torch.stack([latent + sigma * torch.randn(latent.shape, generator=rng) for sigma in sigmas])
    kind = pack_module("inversion.record").Inversion
    return kind(latents, tuple(sigmas), steps, 0, "SD1.x", "eps", source)


def measure(case: str, chosen: argparse.Namespace) -> dict[str, float]:
    """One case: forward and backward evaluations and seconds per step, and peak memory in GB."""
    import comfy.model_management
    import torch
    from machine.own_process import peak
    from machine.pack import pack_module

    model = full_size_model(getattr(torch, chosen.dtype), chosen.width)
    rng = torch.Generator().manual_seed(3)
    latent = torch.randn(1, 4, chosen.size // 8, chosen.size // 8, generator=rng)
    comfy.model_management.load_models_gpu([model])
    with pack_module("host.cost").measured(model) as (counted, cost):
        backward = run_case(case, counted, latent, chosen.steps)
    return {
        "forward": cost.forward / chosen.steps,
        "backward": backward / chosen.steps,
        "seconds": cost.seconds / chosen.steps,
        "memory": peak(comfy.model_management.get_torch_device()),
    }


def table(found: dict[str, dict[str, float]]) -> str:
    """The cases side by side."""
    from machine.own_process import COSTS, cost_cells
    from measure import report

    rows = []
    for case, values in found.items():
        back = f" + {values['backward']:g} back" if values["backward"] else ""
        rows.append([case, f"{values['forward']:g}{back}", *cost_cells(values, found[PLAIN])])
    return report.markdown(["one step", "evaluations", *COSTS], rows)


def main(arguments: list[str]) -> int:
    """Measure, print the table and write it to a file; returns the exit code."""
    import torch
    from machine.own_process import run_cases
    from measure import results

    parser = argparse.ArgumentParser(prog="demo/benchmark.py inversions", description=__doc__)
    parser.add_argument("--steps", type=int, default=4, help="DDIM steps of each case")
    parser.add_argument("--size", type=int, default=512, help="side of the image in pixels")
    parser.add_argument("--width", type=int, default=320, help="channels of the first block; 320 is SD1.5")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--output", type=Path, default=Path("build/benchmark.md"))
    parser.add_argument("--write", action="store_true", help="put the table into demo/RESULTS.md too")
    parser.add_argument("--case", choices=CASES, help="only this one, as JSON")
    chosen = parser.parse_args(arguments)
    if chosen.case is not None:
        with torch.inference_mode():
            print(json.dumps(measure(chosen.case, chosen)))
        return 0
    found = run_cases("inversions", CASES, arguments)
    if found is None:
        return 1
    text = table(found)
    print(text)
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(text, "utf-8")
    if chosen.write:
        results.write_benchmark("inversions", arguments, text)
    return 0
