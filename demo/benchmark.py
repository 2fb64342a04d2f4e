"""Time and memory of each inversion on a full-size SD1.5 UNet: `python demo/benchmark.py [--steps 4] [--size 512]`.

The weights are random, so nothing has to be downloaded; what an evaluation costs does not depend on them. Everything
is a ratio to the host's own sampler, in one process: one guided step of euler, two evaluations.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
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


def cases(model: Any, latent: Any, steps: int) -> dict[str, Callable[[Any], tuple[int, int]]]:
    """What is measured: from a model whose evaluations are counted to (steps, backward evaluations)."""
    import comfy.sample
    import comfy.samplers
    import torch
    from pack import pack_module

    run, direct = pack_module("inversion.run"), pack_module("inversion.direct")
    null, fixed = pack_module("inversion.null_text"), pack_module("inversion.fixed_point")
    positive, negative = conditioning(1), conditioning(2)
    inversion = run.ddim_inversion(model, {"samples": latent}, positive, steps + 1, 0)
    sigmas = torch.tensor(inversion.schedule)

    def plain(counted: Any) -> tuple[int, int]:
        sampler = comfy.samplers.sampler_object("euler")
        comfy.sample.sample_custom(
            counted,
            torch.zeros_like(latent),
            7.5,
            sampler,
            sigmas,
            positive,
            negative,
            latent,
            disable_pbar=True,
            seed=0,
        )
        return steps, 0

    def ddim(counted: Any) -> tuple[int, int]:
        run.ddim_inversion(counted, {"samples": latent}, positive, steps + 1, 0)
        return steps, 0

    def repeated(counted: Any) -> tuple[int, int]:
        fixed.fixed_point_inversion(counted, inversion, (1.0, None), tolerance=0.0, iterations=5)
        return steps, 0

    def pulled(counted: Any) -> tuple[int, int]:
        direct.direct_inversion(counted, inversion, (7.5, negative), 0.5, 1)
        return steps, 0

    def optimised(checkpointing: bool) -> Callable[[Any], tuple[int, int]]:
        def case(counted: Any) -> tuple[int, int]:
            settings = null.Settings(inner=1, early_stop=0.0, checkpointing=checkpointing)
            told = null.null_text_inversion(counted, inversion, negative, settings)[1]
            return steps, told.cost.backward

        return case

    return {
        "plain sampler, euler": plain,
        "DDIM inversion": ddim,
        "fixed point, 5 iterations": repeated,
        "direct inversion at half strength": pulled,
        "null text, 1 update": optimised(False),
        "null text, 1 update, saving memory": optimised(True),
    }


def measure(model: Any, latent: Any, steps: int) -> list[list[str]]:
    """Rows of the table."""
    from pack import pack_module

    measured = pack_module("inversion.cost").measured
    rows, unit = [], 0.0
    for name, case in cases(model, latent, steps).items():
        with measured(model) as (counted, cost):
            done, backward = case(counted)
        per_step = cost.seconds / done
        unit = unit or per_step
        evaluations = f"{cost.forward / done:g}" + (f" + {backward / done:g} back" if backward else "")
        rows.append(
            [name, evaluations, f"{per_step:.2f} s", f"{per_step / unit:.2f}x", f"{cost.memory / 2**20:.0f} MiB"]
        )
        print(" | ".join(rows[-1]), flush=True)
    return rows


def main(arguments: list[str]) -> int:
    """Measure, print the table and write it to a file; returns the exit code."""
    import report
    import torch

    parser = argparse.ArgumentParser(prog="demo/benchmark.py", description=__doc__)
    parser.add_argument("--steps", type=int, default=4, help="DDIM steps of each case")
    parser.add_argument("--size", type=int, default=512, help="side of the image in pixels")
    parser.add_argument("--width", type=int, default=320, help="channels of the first block; 320 is SD1.5")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--output", type=Path, default=Path("build/benchmark.md"))
    options = parser.parse_args(arguments)
    with torch.inference_mode():
        model = full_size_model(getattr(torch, options.dtype), options.width)
        rng = torch.Generator().manual_seed(3)
        latent = torch.randn(1, 4, options.size // 8, options.size // 8, generator=rng)
        rows = measure(model, latent, options.steps)
    table = report.markdown(["case", "evaluations per step", "time per step", "ratio", "memory above weights"], rows)
    print(table)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(table, "utf-8")
    return 0


if __name__ == "__main__":
    import host_process

    sys.exit(host_process.run(__file__, "benchmark"))
