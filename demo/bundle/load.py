"""The demo model's sizes, and how its file becomes the host's own MODEL, CLIP and VAE objects.

None of its neighbours is imported, so that a node of the pack can use it as a part of the package, and the
scripts of this folder as a plain module.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.taesd.taesd
import comfy.utils
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

CONTEXT = 64
"""Width of the text states."""

UNET: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 64,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 1, 1, 2],
    "num_heads": -1,
    "num_head_channels": 32,
    "use_spatial_transformer": True,
    "legacy": False,
    "context_dim": CONTEXT,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "use_linear_in_transformer": False,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
    "adm_in_channels": None,
}
"""The host's UNetModel arguments. GroupNorm has 32 groups, and groups of one channel would take the mean of
every channel away (and with it the background colour): hence 64 channels and not 32."""

TEXT: dict[str, Any] = {
    "hidden_size": CONTEXT,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
    "vocab_size": 49408,
}
LATENT_SCALE = 0.18215
FILE = Path(__file__).with_name("model.safetensors")
TOKENS = "text.text_model.embeddings.token_embedding.weight"
TOKEN_IDS = "token_ids"


class DemoModelError(RuntimeError):
    """The demo model's file cannot be used; the text says why and what to do."""


class Residual(nn.Module):
    """x + conv(silu(conv(silu(x))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return x + self.second(F.silu(self.first(F.silu(x))))


class Autoencoder(nn.Module):
    """Images (B, 3, H, W) in -1..1 to latents (B, 4, H/8, W/8) and back.

    It has no normalisation, and looks no further than some fifty pixels: an edit changes nothing elsewhere.
    """

    def __init__(self, narrow: int = 48, wide: int = 96) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, narrow, 3, padding=1),
            Residual(narrow),
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * narrow, wide, 1),
            Residual(wide),
            nn.Conv2d(wide, 4, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(4, wide, 3, padding=1),
            Residual(wide),
            Residual(wide),
            nn.Conv2d(wide, 4 * narrow, 1),
            nn.PixelShuffle(2),
            Residual(narrow),
            nn.SiLU(),
            nn.Conv2d(narrow, 48, 3, padding=1),
            nn.PixelShuffle(4),
        )

    def encode(self, image: Tensor) -> Tensor:
        """The host's VAE interface; latents leave on the scale that SD's latent format takes away."""
        return self.encoder(image) / LATENT_SCALE

    def decode(self, latent: Tensor) -> Tensor:
        """The host's VAE interface."""
        return self.decoder(latent * LATENT_SCALE)


class _DemoModel(comfy.supported_models.SD15):
    """Stable Diffusion 1.x for the host, with the demo model's heads instead of eight per block."""

    unet_extra_config: ClassVar[dict[str, Any]] = {}
    picture_side = 128


class _DemoVAE(comfy.sd.VAE):
    """The host's VAE around the demo model's own autoencoder, which the host cannot tell from its weights."""

    def __init__(self, path: Path, tensors: dict[str, Tensor]) -> None:
        # Every entry that the host's VAE has comes from one of the same scale and interface. Full precision:
        # it is tiny, and an edit is measured against it.
        super().__init__(sd=comfy.taesd.taesd.TAESD().state_dict(), dtype=torch.float32)
        self.first_stage_model = Autoencoder().eval().requires_grad_(False)
        check_tensors(path, "vae", tensors, self.first_stage_model)
        self.first_stage_model.load_state_dict(tensors)
        # Its layers are plain ones, which the host cannot load in parts.
        self.disable_offload = True
        self.patcher = comfy.model_patcher.ModelPatcher(
            self.first_stage_model,
            load_device=self.device,
            offload_device=comfy.model_management.vae_offload_device(),
        )
        self.size = None
        self.model_size()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        DemoModelError: the file is missing or damaged.
    """
    if not path.is_file():
        raise DemoModelError(
            f"The demo model is missing: there is no {path}. It comes with the pack; install the pack again, "
            "or train the model with `python demo/train.py`."
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise DemoModelError(
            f"The demo model {path} is damaged ({error}). Install the pack again to get all of it."
        ) from error


def read_parts(path: Path = FILE) -> dict[str, dict[str, Tensor]]:
    """The file's tensors by part ("unet", "text", "vae"), with the token table filled up to its full length.

    Rows of words that the demo world does not use are zero.

    Raises:
        DemoModelError: the file is missing, damaged, or something else than the demo model.
    """
    tensors = read_tensors(path)
    ids, rows = tensors.pop(TOKEN_IDS, None), tensors.get(TOKENS)
    if ids is None or rows is None or rows.shape != (len(ids), CONTEXT):
        raise foreign(path, "it has no token table of the demo world")
    table = rows.new_zeros(TEXT["vocab_size"], CONTEXT)
    table[ids.long()] = rows
    tensors[TOKENS] = table
    parts: dict[str, dict[str, Tensor]] = {"unet": {}, "text": {}, "vae": {}}
    for key, tensor in tensors.items():
        part, _, name = key.partition(".")
        if part not in parts:
            raise foreign(path, f"it has a tensor {key}")
        parts[part][name] = tensor
    return parts


def foreign(path: Path, why: str) -> DemoModelError:
    """The error about a file that holds something else."""
    return DemoModelError(
        f"{path} is not the demo model: {why}. Load other models with ComfyUI's own loaders, and install the "
        "pack again if this file came with it."
    )


def _sizes(network: nn.Module) -> dict[str, torch.Size]:
    """Names and sizes of a network's tensors.

    Where the host loads weights dynamically, as on NVIDIA cards, its layers hold none before they are loaded.
    """
    sizes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear) and layer.weight is None:
            sizes[f"{name}.weight"] = torch.Size((layer.out_features, layer.in_features))
            if getattr(layer, "comfy_need_lazy_init_bias", False):
                sizes[f"{name}.bias"] = torch.Size((layer.out_features,))
        elif isinstance(layer, nn.Embedding) and layer.weight is None:
            sizes[f"{name}.weight"] = torch.Size((layer.num_embeddings, layer.embedding_dim))
    return sizes


def check_tensors(path: Path, part: str, have: dict[str, Tensor], network: nn.Module) -> None:
    """Compare names and sizes with what a network takes, because the host only logs what does not fit.

    Raises:
        DemoModelError: something does not fit.
    """
    want = _sizes(network)
    missing, extra = sorted(want.keys() - have.keys()), sorted(have.keys() - want.keys())
    if missing or extra:
        raise foreign(path, f"of its {part}, {len(missing)} tensors are missing and {len(extra)} unknown")
    for name, tensor in have.items():
        if tensor.shape != want[name]:
            raise foreign(path, f"{part}.{name} has the size {tuple(tensor.shape)}, not {tuple(want[name])}")


def host_model(
    path: Path, part: str, config: comfy.supported_models_base.BASE, tensors: dict[str, Tensor]
) -> comfy.model_patcher.ModelPatcher:
    """One of the file's networks as the host's MODEL, in the precision that the host chooses for its device.

    Args:
        path, part: where the tensors come from, for errors. config: the host's, with the network's sizes.

    Raises:
        DemoModelError: tensors are missing, unknown or of another size.
    """
    management = comfy.model_management
    device = management.get_torch_device()
    parameters = comfy.utils.calculate_parameters(tensors)
    dtype = management.unet_dtype(
        model_params=parameters,
        supported_dtypes=list(config.supported_inference_dtypes),
        weight_dtype=torch.float16,
    )
    cast = management.unet_manual_cast(dtype, device, config.supported_inference_dtypes)
    config.set_inference_dtype(dtype, cast)
    model = config.get_model({}, device=management.unet_inital_load_device(parameters, dtype))
    check_tensors(path, part, tensors, model.diffusion_model)
    # Hosts before 0.16 know the plain patcher only, which has the tensors copied.
    make = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    patcher = make(model, load_device=device, offload_device=management.unet_offload_device())
    assign = {"assign": True} if getattr(patcher, "is_dynamic", bool)() else {}
    # Where the host takes the tensors over instead of copying them, they have to have its precision.
    model.load_model_weights({k: v.to(dtype) for k, v in tensors.items()}, "", **assign)
    return patcher


def _clip(path: Path, tensors: dict[str, Tensor]) -> comfy.sd.CLIP:
    """The text encoder as the host's CLIP."""
    clip = comfy.sd.CLIP(
        comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel),
        parameters=comfy.utils.calculate_parameters(tensors),
        model_options={"clip_l_model_config": TEXT},
    )
    check_tensors(path, "text", tensors, clip.cond_stage_model.clip_l.transformer)
    clip.load_sd({f"clip_l.transformer.{k}": v for k, v in tensors.items()}, full_model=True)
    return clip


def load_demo_model(
    path: Path = FILE,
) -> tuple[comfy.model_patcher.ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """The demo model as the host's MODEL, CLIP and VAE, the same kinds of objects that its loaders return.

    Raises:
        DemoModelError: the file is missing, damaged, or something else than the demo model.
    """
    parts = read_parts(path)
    model = host_model(path, "unet", _DemoModel(UNET), parts["unet"])
    return model, _clip(path, parts["text"]), _DemoVAE(path, parts["vae"])


def load_clip_and_vae(path: Path = FILE) -> tuple[comfy.sd.CLIP, comfy.sd.VAE]:
    """The demo model's text encoder and autoencoder as the host's CLIP and VAE.

    Raises:
        DemoModelError: the file is missing, damaged, or something else than the demo model.
    """
    parts = read_parts(path)
    return _clip(path, parts["text"]), _DemoVAE(path, parts["vae"])
