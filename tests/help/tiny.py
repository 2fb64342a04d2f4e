"""Tiny random-weight models of every family on the host's own classes: they stand in for weights, nothing else."""

from __future__ import annotations

import os
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.supported_models
import torch
from torch import Tensor

CONTEXT = 16
SIZE = 16
CPU = torch.device("cpu")
DEVICE = CPU if os.environ.get("ATTENTION_EDIT_DEVICE", "cpu") == "cpu" else comfy.model_management.get_torch_device()
"""Where the tiny models run; $ATTENTION_EDIT_DEVICE other than "cpu" is the host's choice."""


def _config(kind: str, dtype: torch.dtype) -> dict[str, Any]:
    config: dict[str, Any] = {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 32,
        "dtype": dtype,
        "use_spatial_transformer": True,
        "legacy": False,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
        "context_dim": CONTEXT,
    }
    if kind == "SDXL":
        return config | {
            "num_res_blocks": [2, 2, 2],
            "channel_mult": [1, 2, 4],
            "adm_in_channels": 2816,
            "num_classes": "sequential",
            "transformer_depth": [0, 0, 2, 2, 10, 10],
            "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
            "transformer_depth_middle": 10,
            "use_linear_in_transformer": True,
        }
    return config | {
        "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": [1, 2, 4, 4],
        "adm_in_channels": None,
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "transformer_depth_middle": 1,
        "use_linear_in_transformer": kind == "SD2",
    }


CUT_DOWN: dict[str, tuple[str, str, dict[str, Any]]] = {
    "SSD1B": (
        "SDXL",
        "SSD1B",
        {
            "transformer_depth": [0, 0, 2, 2, 4, 4],
            "transformer_depth_output": [0, 0, 0, 1, 1, 2, 10, 4, 4],
            "transformer_depth_middle": -1,
        },
    ),
    "Vega": (
        "SDXL",
        "Segmind_Vega",
        {
            "transformer_depth": [0, 0, 1, 1, 2, 2],
            "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
            "transformer_depth_middle": -1,
        },
    ),
    "KOALA": (
        "SDXL",
        "KOALA_700M",
        {
            "num_res_blocks": [1, 1, 1],
            "transformer_depth": [0, 2, 5],
            "transformer_depth_output": [0, 0, 2, 2, 5, 5],
            "transformer_depth_middle": -2,
        },
    ),
    "BK-SDM": (
        "SD1",
        "SD15",
        {
            "num_res_blocks": [1, 1, 1, 1],
            "transformer_depth": [1, 1, 1, 0],
            "transformer_depth_output": [1, 1, 1, 1, 1, 1, 0, 0],
            "transformer_depth_middle": -2,
        },
    ),
}
"""UNets cut down from a family's: its kind, the host's configuration, and what differs from the family's UNet."""
_HOST_CONFIGS = {"SD1": "SD15", "SD2": "SD20", "SDXL": "SDXL"} | {kind: name for kind, (_, name, _) in CUT_DOWN.items()}


def tiny_model(
    kind: str = "SD1",
    v: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    device: torch.device = DEVICE,
    **other: Any,
) -> Any:
    """A host MODEL with random weights.

    Args:
        kind: SD1, SD2 or SDXL, or one of CUT_DOWN.
        v: v-prediction instead of eps.
        dtype: of the weights, which the host computes in.
        device: where it runs; its weights wait on the CPU until the host loads them.
        other: of the UNet's configuration, what is to differ from the kind's.
    """
    config_name = _HOST_CONFIGS[kind]
    kind, _, cut = CUT_DOWN.get(kind, (kind, "", {}))
    config = getattr(comfy.supported_models, config_name)(_config(kind, dtype) | cut | other)
    config.unet_config |= {"num_heads": -1, "num_head_channels": 8}
    base = comfy.model_base.SDXL if kind == "SDXL" else comfy.model_base.BaseModel
    prediction = comfy.model_base.ModelType.V_PREDICTION if v else comfy.model_base.ModelType.EPS
    model = base(config, prediction, device=CPU)
    rng = torch.Generator().manual_seed(seed)
    for weight_name, weight in model.diffusion_model.named_parameters():
        if weight.ndim > 1:
            weight.data = (torch.randn(weight.shape, generator=rng) / weight[0].numel() ** 0.5).to(dtype)
        else:
            weight.data.fill_(1.0 if weight_name.endswith("weight") else 0.0)
    model.eval()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=CPU)


def prompt(seed: int, kind: str = "SD1", tokens: int = 77, batch: int = 1) -> list[Any]:
    """CONDITIONING with random states in place of an encoded text."""
    rng = torch.Generator().manual_seed(seed)
    options = {"pooled_output": torch.randn(batch, 1280, generator=rng)} if kind == "SDXL" else {}
    return [[torch.randn(batch, tokens, CONTEXT, generator=rng), options]]


def latent(seed: int, batch: int = 1, height: int = SIZE, width: int = SIZE) -> Tensor:
    """A latent as sockets carry it (not scaled)."""
    return torch.randn(batch, 4, height, width, generator=torch.Generator().manual_seed(seed)) * 4


def sample(
    model: Any,
    positive: list[Any],
    negative: list[Any],
    start: Tensor,
    sigmas: Tensor,
    cfg: float = 7.5,
    sampler: str = "euler",
    seed: int = 0,
    **kwargs: Any,
) -> Tensor:
    """Run a stock sampler from a given start latent, without added noise unless it is given, as the host's nodes do."""
    noise = kwargs.pop("noise", torch.zeros_like(start))
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    with torch.inference_mode():
        return guider.sample(
            noise,
            start,
            comfy.samplers.sampler_object(sampler),
            sigmas,
            disable_pbar=True,
            seed=seed,
            **kwargs,
        )
