"""A proposed mask: where two prompts disagree about a noised image (DiffEdit, Couairon et al. 2023, step 1)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
import torch.nn.functional as F
from torch import Tensor

from ...host.conditioning import Conditioning
from ...host.families import family_of
from ...host.guider import run_sampler
from ...host.models import CELL, check_latent
from ...inversion.ddim_inversion import check_unedited

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DiffMask:
    """A proposal.

    Attributes:
        heat: (B, H, W) in 0..1, how much the prompts disagree at each pixel.
        mask: (B, H, W) bool, where that is above the threshold.
    """

    heat: Tensor
    mask: Tensor


class _Difference(comfy.samplers.CFGGuider):
    """A host guider whose prediction is one prompt's minus the other's; the host batches the two."""

    def set_prompts(self, target: Conditioning, reference: Conditioning) -> None:
        """The two conditionings."""
        self.inner_set_conds({"positive": target, "negative": reference})

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: dict[str, Any] | None = None, seed: int | None = None
    ) -> Tensor:
        """Difference (B, C, h, w) of the predicted clean latents, that of the noise up to a factor."""
        conds = [self.conds["positive"], self.conds["negative"]]
        target, reference = comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options or {})
        return target - reference


class _Noises(comfy.samplers.Sampler):
    """A host sampler that asks for the difference under several noises, and moves nothing."""

    def __init__(self, noises: Callable[[int], Any], count: int) -> None:
        self.noises, self.count = noises, count
        self.mean = torch.empty(0)

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callable[..., None] | None,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        """Mean (B, h, w) of the absolute difference over noises and channels; the host's Sampler interface."""
        assert latent_image is not None
        sampling = model_wrap.inner_model.model_sampling
        total = latent_image.new_zeros(latent_image[:, 0].shape)
        for number in range(self.count):
            comfy.model_management.throw_exception_if_processing_interrupted()
            x = sampling.noise_scaling(sigmas[0], self.noises(number).to(latent_image), latent_image)
            sigma = sigmas[:1].to(x).expand(len(x))
            difference = model_wrap(x, sigma, extra_args["model_options"], extra_args["seed"])
            total += difference.abs().mean(1)
            if callback is not None:
                callback(number, latent_image, x, self.count)
        self.mean = total / self.count
        return latent_image


def diff_mask(  # noqa: PLR0913
    model: Any,
    latent: dict[str, Any],
    target: Conditioning,
    reference: Conditioning,
    *,
    strength: float = 0.5,
    maps: int = 10,
    threshold: float = 0.5,
    clamp: float = 3.0,
    seed: int = 0,
) -> DiffMask:
    """Where an image would have to change for the target prompt.

    Args:
        model: host MODEL without edits.
        latent: LATENT of the images.
        target, reference: the edit's prompt, and what the image shows (or the empty prompt).
        strength: share of the noise schedule up to which the image is noised, between 0 and 1.
        maps: noises that are averaged; noise i has seed + i.
        threshold: of the heat, 0..1.
        clamp: differences above this many times an image's mean count as that much.
        seed: of the first noise.

    Raises:
        ValueError: edits on the model, an unknown family, a strength out of range, or prompts that do not differ.
    """
    check_unedited(model, passive=True, place="Difference Mask")
    family_of(model)
    samples = check_latent(latent, "Difference Mask")
    if not 0 < strength < 1:
        raise ValueError(f"Difference Mask's strength must be above 0 and below 1, not {strength:g}.")
    log.info("Difference Mask plans %d UNet evaluations", 2 * maps * len(samples))
    sigma = model.get_model_object("model_sampling").percent_to_sigma(1 - strength)
    noises = _Noises(lambda number: comfy.sample.prepare_noise(samples, seed + number), maps)
    guider = _Difference(model)
    guider.set_prompts(target, reference)
    run_sampler(guider, noises, samples, [sigma, 0.0], steps=maps, seed=seed)
    heat = heat_of(noises.mean.float().cpu(), clamp)
    size = (samples.shape[-2] * CELL, samples.shape[-1] * CELL)
    heat = F.interpolate(heat[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    return DiffMask(heat, heat > threshold)


def heat_of(difference: Tensor, clamp: float) -> Tensor:
    """Mean differences (B, h, w) without outliers, stretched to 0..1 for each image.

    Raises:
        ValueError: there is no difference, or it is not a number.
    """
    if not torch.isfinite(difference).all():
        raise ValueError(
            "Difference Mask's predictions are not finite; the model overflows in half precision. Start ComfyUI with "
            "--force-fp32, or load another checkpoint."
        )
    if (difference.amax((1, 2)) == 0).any():
        raise ValueError(
            "The target and the reference prompt of Difference Mask say the same, so nothing tells where to edit. "
            "Write into one what the image shows, and into the other what it shall show."
        )
    clamped = difference.minimum(clamp * difference.mean((1, 2), keepdim=True))
    least, most = clamped.amin((1, 2), keepdim=True), clamped.amax((1, 2), keepdim=True)
    return (clamped - least) / (most - least).clamp(min=1e-12)
