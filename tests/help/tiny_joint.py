"""Tiny random-weight transformers on the host's own classes: they stand in for weights, nothing else."""

from __future__ import annotations

from typing import Any

import comfy.model_patcher
import comfy.supported_models
import tiny
import torch
from attention_edit.attention.engine.install import install, pin
from attention_edit.inversion.ddim_inversion import DDIMInversion
from attention_edit.inversion.generated import GeneratedSource
from attention_edit.inversion.record import Inversion
from torch import Tensor

EXACT = 2e-5
"""Relative difference that float32 leaves after four steps of attention computed in another order."""
LEFT = torch.arange(64).expand(1, 64, 64) < 32
"""The left half of a picture of 64 pixels, as a mask (1, H, W) bool."""
CONTEXT, POOLED = 24, 12
_FLUX: dict[str, Any] = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "hidden_size": 64,
    "num_heads": 4,
    "axes_dim": [4, 6, 6],
    "mlp_ratio": 2.0,
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "vec_in_dim": POOLED,
    "context_in_dim": CONTEXT,
    "depth": 2,
    "depth_single_blocks": 3,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
_FLUX2 = _FLUX | {
    "image_model": "flux2",
    "in_channels": 128,
    "out_channels": 128,
    "axes_dim": [4, 4, 4, 4],
    "theta": 2000,
    "patch_size": 1,
    "qkv_bias": False,
    "vec_in_dim": None,
    "txt_ids_dims": [3],
    "global_modulation": True,
    "mlp_silu_act": True,
    "ops_bias": False,
    "default_ref_method": "index",
    "ref_index_scale": 10.0,
}
_CHROMA = {key: value for key, value in _FLUX.items() if key != "guidance_embed"} | {
    "image_model": "chroma",
    "in_channels": 64,
    "out_channels": 64,
    "in_dim": 64,
    "out_dim": 64,
    "hidden_dim": 32,
    "n_layers": 2,
    "vec_in_dim": None,
}
_SD3: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "depth": 3,
    "input_size": None,
    "adm_in_channels": POOLED,
    "num_patches": 24 * 24,
    "pos_embed_max_size": 24,
    "pos_embed_scaling_factor": None,
    "qk_norm": "rms",
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": CONTEXT, "out_features": 192},
    },
    "x_block_self_attn_layers": [0, 1],
}
_LUMINA2: dict[str, Any] = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 48,
    "n_layers": 3,
    "n_refiner_layers": 1,
    "n_heads": 4,
    "n_kv_heads": 2,
    "multiple_of": 32,
    "qk_norm": True,
    "cap_feat_dim": CONTEXT,
    "axes_dims": [4, 4, 4],
    "axes_lens": [300, 512, 512],
}
_ZIMAGE = _LUMINA2 | {
    "dim": 256,
    "n_kv_heads": 4,
    "axes_dims": [16, 24, 24],
    "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}
_QWEN: dict[str, Any] = {
    "image_model": "qwen_image",
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "joint_attention_dim": CONTEXT,
    "axes_dims_rope": [4, 6, 6],
    "patch_size": 2,
}
CONFIGS = {
    "Flux": _FLUX,
    "FluxSchnell": _FLUX | {"guidance_embed": False},
    "Flux2": _FLUX2,
    "Chroma": _CHROMA,
    "SD3": _SD3,
    "ZImage": _ZIMAGE,
    "Lumina2": _LUMINA2,
    "QwenImage": _QWEN,
}
"""By the host's configuration, the arguments of its network."""


def joint_model(
    kind: str = "Flux", seed: int = 0, dtype: torch.dtype = torch.float32, device: torch.device = tiny.DEVICE
) -> Any:
    """A host MODEL with random weights; `kind` is one of CONFIGS."""
    config = getattr(comfy.supported_models, kind)({**CONFIGS[kind], "dtype": dtype})
    torch.manual_seed(seed)
    model = config.get_model({}, "", device=tiny.CPU)
    rng = torch.Generator().manual_seed(seed)
    for name, weight in model.diffusion_model.named_parameters():
        if weight.ndim > 1:
            weight.data = (torch.randn(weight.shape, generator=rng) / weight[0].numel() ** 0.5).to(dtype)
        elif name.endswith(("weight", "scale")):
            weight.data.fill_(1.0)
        else:
            weight.data = (torch.randn(weight.shape, generator=rng) * 0.1).to(dtype)
    if kind == "SD3":
        positions = model.diffusion_model.pos_embed
        positions.copy_(torch.randn(positions.shape, generator=rng))
    model.eval()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=tiny.CPU)


def joint_prompt(seed: int, kind: str = "Flux", tokens: int = 12, **options: Any) -> list[Any]:
    """CONDITIONING with random states in place of an encoded text."""
    rng = torch.Generator().manual_seed(seed)
    if CONFIGS[kind].get("vec_in_dim") or kind == "SD3":
        options["pooled_output"] = torch.randn(1, POOLED, generator=rng)
    return [[torch.randn(1, tokens, CONTEXT, generator=rng), options]]


def joint_latent(seed: int, kind: str = "Flux", batch: int = 1, side: int | None = None) -> Tensor:
    """A latent as sockets carry it; Z-Image's of so many tokens that it needs no pads, Qwen-Image's with a frame."""
    side = side or (16 if kind == "ZImage" else 8)
    channels = 128 if kind == "Flux2" else 16
    shape = (batch, channels, 1, side, side) if kind == "QwenImage" else (batch, channels, side, side)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def joint_inversion(model: Any, kind: str = "Flux", batch: int = 1, steps: int = 4, iterations: int = 3) -> Inversion:
    """Random latents inverted with the prompt of seed 5."""
    with torch.inference_mode():
        latent = {"samples": joint_latent(1, kind, batch)}
        return DDIMInversion(steps, flow_iterations=iterations)(model, latent, joint_prompt(5, kind)).inversion


def joint_drawn(model: Any, kind: str, side: int | None = None) -> tuple[Inversion, Tensor]:
    """A generated source, whose trajectory stock Euler draws again, and its latent as sockets carry it."""
    with torch.inference_mode():
        latent = {"samples": joint_latent(1, kind, side=side)}
        inversion = GeneratedSource(4, seed=7)(model, latent, joint_prompt(5, kind)).inversion
    return inversion, model.get_model_object("latent_format").process_out(inversion.latents[0])


def joint_sample(
    model: Any,
    positive: list[Any],
    negative: list[Any],
    start: Tensor,
    noise: Tensor,
    sigmas: Tensor,
    cfg: float = 1.0,
    **options: Any,
) -> Tensor:
    """Stock Euler, as the host's nodes run it."""
    return tiny.sample(model, positive, negative, start, sigmas, cfg, noise=noise, **options)


def joint_run(
    model: Any,
    inversion: Inversion,
    *controls: Any,
    kind: str = "Flux",
    cfg: float = 1.0,
    packed: bool = False,
    positive: list[Any] | None = None,
    batch: int = 1,
) -> Tensor:
    """Run controls on the inversion's schedule, by default with the prompt of seed 2."""
    for control in controls:
        model = install(model, control, inversion, packed)
    model = pin(model, inversion, tuple(inversion.schedule))
    start = torch.zeros(batch, *inversion.latents.shape[2:])
    given = joint_prompt(2, kind) if positive is None else positive
    return joint_sample(model, given, joint_prompt(3, kind), start, start, torch.tensor([1.0, 0.0]), cfg)
