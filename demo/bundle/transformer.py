"""The demo transformer: a tiny Flux on the demo model's latents and text states, as the host's own objects.

Its file holds the transformer alone; text encoder and autoencoder are those of the demo model beside it. The host's
Flux class with one modulation for all blocks, as in Flux.2: this network is told nothing but the noise level, and
its weights do more elsewhere. It sees no pooled text: what a prompt says reaches the picture by attention alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import comfy.latent_formats
import comfy.ldm.flux.layers
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
from torch import Tensor

from .load import CONTEXT, FILE, foreign, host_model, load_clip_and_vae, load_demo_model, read_tensors

TRANSFORMER_FILE = Path(__file__).with_name("transformer.safetensors")
PREFIX = "transformer."
"""Every tensor's name in the file begins with it."""
WIDTH, DOUBLE, SINGLE = 192, 3, 5
"""Width, blocks with streams of their own for text and image, and blocks with one: 4.8 million weights."""
HEAD = 32
LATENT_CHANNELS = 4
SHIFT = 2.0
"""How much of the schedule lies at high noise (Esser et al. 2024, eq. 23). Half the steps of a run then lie above
a noise level of 2/3: large even shapes show through much noise, and what is where and in which colour is decided
there. The papers' 3 is for latents of many more cells."""


def transformer_config(width: int = WIDTH, double: int = DOUBLE, single: int = SINGLE) -> dict[str, Any]:
    """The host's Flux arguments. A token is one latent cell: at 16 x 16 of them, patches would blur small shapes.

    Args:
        width: of the token states, a multiple of HEAD. double, single: numbers of blocks.
    """
    return {
        "image_model": "flux",
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "patch_size": 1,
        "hidden_size": width,
        "num_heads": width // HEAD,
        "axes_dim": [4, 14, 14],
        # Positions run to 15 and not to some thousands: the slowest pair of channels turns by a quarter radian.
        "theta": 100,
        "mlp_ratio": 3.0,
        "qkv_bias": True,
        "vec_in_dim": None,
        "context_in_dim": CONTEXT,
        "depth": double,
        "depth_single_blocks": single,
        "guidance_embed": False,
        "txt_ids_dims": [],
        "global_modulation": True,
    }


class DemoTransformer(comfy.supported_models.FluxSchnell):
    """Flux without embedded guidance for the host, on latents of the demo model's autoencoder."""

    latent_format = comfy.latent_formats.SD15
    sampling_settings: ClassVar[dict[str, Any]] = {"multiplier": 1.0, "shift": SHIFT}
    unet_extra_config: ClassVar[dict[str, Any]] = {}
    picture_side = 128


def is_transformer(path: Path) -> bool:
    """Whether a file holds a demo transformer, by its tensors' names.

    Raises:
        DemoModelError: the file is missing or damaged.
    """
    return all(name.startswith(PREFIX) for name in read_tensors(path))


def read_transformer(path: Path = TRANSFORMER_FILE) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The host's Flux arguments that fit a file, and its tensors by the host's names.

    Raises:
        DemoModelError: the file is missing, damaged, or something else than a demo transformer.
    """
    # Hosts before 0.16 have a norm of their own here, which calls its weight otherwise.
    norm = "_norm.scale" if getattr(comfy.ldm.flux.layers, "RMSNorm", None) else "_norm.weight"
    tensors = {
        name.removeprefix(PREFIX).replace("_norm.weight", norm): tensor for name, tensor in read_tensors(path).items()
    }
    if "img_in.weight" not in tensors or tensors["img_in.weight"].shape[0] % HEAD:
        raise foreign(path, f"it has no tensor {PREFIX}img_in.weight of a width that {HEAD} divides")

    def blocks(kind: str) -> int:
        return len({name.split(".")[1] for name in tensors if name.startswith(f"{kind}_blocks.")})

    width = tensors["img_in.weight"].shape[0]
    return transformer_config(width, blocks("double"), blocks("single")), tensors


def load_demo_transformer(
    path: Path = TRANSFORMER_FILE, demo_model: Path = FILE
) -> tuple[comfy.model_patcher.ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """The demo transformer as the host's MODEL, with the demo model's CLIP and VAE.

    Raises:
        DemoModelError: a file is missing, damaged, or something else than it should be.
    """
    config, tensors = read_transformer(path)
    return host_model(path, "transformer", DemoTransformer(config), tensors), *load_clip_and_vae(demo_model)


def load_demo_file(path: Path) -> tuple[comfy.model_patcher.ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """MODEL, CLIP and VAE of a demo model's or a demo transformer's file, whichever it is.

    Raises:
        DemoModelError: the file is missing, damaged, or neither of both.
    """
    return load_demo_transformer(path) if is_transformer(path) else load_demo_model(path)
