"""What a host MODEL predicts, and which latents it takes."""

from __future__ import annotations

from typing import Any

import comfy.model_sampling
import comfy.samplers
import torch
from torch import Tensor

LATENT_CHANNELS = 4
FRAMED = 5
"""Axes of a latent with one of frames."""
CELL = 8
"""Pixels along the side of a cell of the latent; the autoencoder rounds an image's sides down to multiples of it."""


def prediction_of(model: Any) -> str:
    """ "eps", "v" or "flow" (rectified flow) of a host MODEL, as its sampling object says.

    Raises:
        ValueError: the model predicts something else (EDM, x0).
    """
    sampling = model.get_model_object("model_sampling")
    other = (comfy.model_sampling.EDM, comfy.model_sampling.X0)
    if is_flow(sampling):
        return "flow"
    if isinstance(sampling, comfy.model_sampling.EPS) and not isinstance(sampling, other):
        return "v" if isinstance(sampling, comfy.model_sampling.V_PREDICTION) else "eps"
    raise ValueError(
        f"Inversion needs a model with eps or v prediction, or a rectified flow; this one uses "
        f"{type(sampling).__mro__[2].__name__}. Connect an SD1.x, SD2.x, SDXL, Flux or SD3 checkpoint without a "
        "sampling patch that changes it."
    )


def is_flow(sampling: Any) -> bool:
    """Whether a model's sampling object is a rectified flow's: x = sigma noise + (1 - sigma) image."""
    flow = isinstance(sampling, comfy.model_sampling.CONST)
    others = getattr(comfy.model_sampling, "IMG_TO_IMG_FLOW", ())  # hosts before 0.16 have none
    return flow and not isinstance(sampling, others)


def flow_levels(sampling: Any, steps: int) -> list[float]:
    """A rectified flow's own noise levels, clean (0) to noisy: the host's "simple" spacing with the model's shift.

    Raises:
        ValueError: more steps than the model has levels.
    """
    found: list[float] = comfy.samplers.calculate_sigmas(sampling, "simple", steps).tolist()
    if steps < 1 or len(set(found)) != steps + 1:
        raise ValueError(f"Lower steps: this model's schedule has no {steps} levels that differ.")
    return found[::-1]


def check_latent(latent: dict[str, Any], place: str = "Inversion", model: Any = None) -> Tensor:
    """The samples of a LATENT, checked; `place` is what it is connected to, for the error.

    Args:
        model: host MODEL whose latent it must be; None for an SD model's.

    Returns:
        the samples; where the model's latents have an axis of frames (Qwen-Image), (B, C, 1, h, w) with it.

    Raises:
        ValueError: not a (B, C, h, w) latent of the model's channels, more than one frame, or it holds NaN or infinity.
    """
    samples, channels, frames = latent["samples"], LATENT_CHANNELS, False
    if model is not None:
        form = model.get_model_object("latent_format")
        channels, frames = form.latent_channels, form.latent_dimensions == FRAMED - 2
    if frames and samples.ndim == FRAMED - 1:  # an empty latent, to which the host adds the axis in sampling
        samples = samples.unsqueeze(2)
    shape = f"(B, {channels}, {'1, ' if frames else ''}h, w)"
    right = samples.ndim == (FRAMED if frames else FRAMED - 1) and (not frames or samples.shape[2] == 1)
    if not right or samples.shape[1] != channels:
        raise ValueError(
            f"{place} needs the latent of this model's images, shape {shape}, not {tuple(latent['samples'].shape)}. "
            "Connect VAE Encode with this model's own VAE."
        )
    if not torch.isfinite(samples).all():
        raise ValueError(
            "The latent holds NaN or infinite values; most often a half-precision VAE made them. Start ComfyUI with "
            "--fp32-vae or load another VAE, and encode the image again."
        )
    return samples


def over_frames(cells: Tensor, like: Tensor) -> Tensor:
    """Cells (B, 1, h, w) of latents, as they broadcast with latents that may have an axis of frames."""
    return cells.unsqueeze(2) if like.ndim == FRAMED else cells


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """One value for each image (B,), as they broadcast with latents (B, C, h, w), or with an axis of frames."""
    return values.view(-1, *[1] * (like.ndim - 1))


def latent_of(model: Any, z: Tensor) -> Tensor:
    """Latents (B, C, h, w) in the network's scale, as a LATENT socket carries them."""
    return model.get_model_object("latent_format").process_out(z)
