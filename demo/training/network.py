"""The demo model's parts, built from the host's own classes, and its file.

Text to latent to image with Stable Diffusion 1.x's topology: 16 transformer blocks in its order, eps
prediction, its beta schedule and its CLIP tokenizer; only the widths are tiny. The file holds the UNet, the
autoencoder and the text encoder in half precision; of the 49,408 rows of the token table it holds those of the
words that the demo world uses.
"""

from __future__ import annotations

import comfy.clip_model
import comfy.ops
import comfy.sd1_clip
import torch
from bundle.load import TEXT, TOKEN_IDS, TOKENS, UNET, Autoencoder
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor, nn

ZEROS = (".out.2.", ".proj_out.", ".out_layers.3.", ".final_layer.", "_modulation")
"""Parts of the names of weights that begin as zero: of what adds to a residual stream, or ends it."""


def new_unet(device: torch.device | str = "cpu") -> UNetModel:
    """The host's UNet class with the demo model's widths, not initialised."""
    return UNetModel(**UNET, dtype=torch.float32, device=device, operations=comfy.ops.disable_weight_init)


def new_text_model(device: torch.device | str = "cpu") -> comfy.clip_model.CLIPTextModel:
    """The host's CLIP text model with a tiny configuration, not initialised."""
    return comfy.clip_model.CLIPTextModel(TEXT, torch.float32, device, comfy.ops.disable_weight_init)


def initialise(module: nn.Module, rng: torch.Generator) -> None:
    """Set weights at random: the host leaves its modules empty, since it only ever loads them."""
    for name, weight in module.named_parameters():
        with torch.no_grad():
            if any(part in f".{name}" for part in ZEROS):
                weight.zero_()
            elif "embedding" in name:
                weight.copy_(torch.randn(weight.shape, generator=rng) * 0.02)
            elif weight.ndim > 1:
                bound = (1.0 / weight[0].numel()) ** 0.5
                weight.copy_((torch.rand(weight.shape, generator=rng) * 2 - 1) * bound * 3**0.5)
            else:
                weight.fill_(1.0 if name.endswith("weight") else 0.0)


def tokenize(captions: list[str]) -> Tensor:
    """Token ids (N, 77) from the host's CLIP tokenizer."""
    tokenizer = comfy.sd1_clip.SDTokenizer()
    rows = [[token for token, _ in tokenizer.tokenize_with_weights(text)[0]] for text in captions]
    return torch.tensor(rows)


def pack(unet: nn.Module, text: nn.Module, autoencoder: Autoencoder, token_ids: Tensor) -> dict[str, Tensor]:
    """The model as the tensors of its file."""
    tensors = {f"unet.{k}": v for k, v in unet.state_dict().items()}
    tensors |= {f"text.{k}": v for k, v in text.state_dict().items()}
    tensors |= {f"vae.{k}": v for k, v in autoencoder.state_dict().items()}
    tensors[TOKENS] = tensors[TOKENS][token_ids]
    tensors = {k: v.detach().to("cpu", torch.float16).contiguous() for k, v in tensors.items()}
    tensors[TOKEN_IDS] = token_ids.to("cpu", torch.int32)
    return tensors
