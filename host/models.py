"""What a host MODEL predicts, and which latents it takes."""

from __future__ import annotations

from typing import Any

import comfy.model_sampling
import torch
from torch import Tensor

LATENT_CHANNELS = 4
CELL = 8
"""Pixels along the side of a cell of the latent; the autoencoder rounds an image's sides down to multiples of it."""


def prediction_of(model: Any) -> str:
    """ "eps" or "v" of a host MODEL, as its sampling object says.

    Raises:
        ValueError: the model predicts something else (flow matching, EDM, x0).
    """
    sampling = model.get_model_object("model_sampling")
    other = (comfy.model_sampling.EDM, comfy.model_sampling.X0)
    if isinstance(sampling, comfy.model_sampling.EPS) and not isinstance(sampling, other):
        return "v" if isinstance(sampling, comfy.model_sampling.V_PREDICTION) else "eps"
    raise ValueError(
        f"Inversion needs a model with eps or v prediction; this one uses {type(sampling).__mro__[2].__name__}. "
        "Connect an SD1.x, SD2.x or SDXL checkpoint without a sampling patch that changes it."
    )


def check_latent(latent: dict[str, Any], place: str = "Inversion") -> Tensor:
    """The samples of a LATENT, checked; `place` is what it is connected to, for the error.

    Raises:
        ValueError: not a (B, 4, h, w) latent, or it holds NaN or infinity.
    """
    samples = latent["samples"]
    if samples.ndim != 4 or samples.shape[1] != LATENT_CHANNELS:
        raise ValueError(
            f"{place} needs the latent of an SD image, shape (B, {LATENT_CHANNELS}, h, w), not {tuple(samples.shape)}. "
            "Connect VAE Encode with this model's own VAE."
        )
    if not torch.isfinite(samples).all():
        raise ValueError(
            "The latent holds NaN or infinite values; most often a half-precision VAE made them. Start ComfyUI with "
            "--fp32-vae or load another VAE, and encode the image again."
        )
    return samples


def latent_of(model: Any, z: Tensor) -> Tensor:
    """Latents (B, C, h, w) in the network's scale, as a LATENT socket carries them."""
    return model.get_model_object("latent_format").process_out(z)
