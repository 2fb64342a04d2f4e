"""A proposed mask: where two prompts disagree about a noised image (DiffEdit, Couairon et al. 2023, step 1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...host.conditioning import Conditioning
from ...host.cost import measured
from ...host.families import family_of
from ...host.guider import DifferenceGuider, HostRun, OwnSampler, noise_like, run_sampler
from ...host.marks import check_unedited
from ...host.models import CELL, check_latent

SEEDS = 2**64
"""Number of seeds that the host knows; the one after the last is 0."""


@dataclass(frozen=True)
class DiffMask:
    """A proposal.

    Attributes:
        heat: (B, H, W) in 0..1, how much the prompts disagree at each pixel.
        mask: (B, H, W) bool, where that is above the threshold.
    """

    heat: Tensor
    mask: Tensor


class _Noises(OwnSampler):
    """Asks for the difference under several noises, and moves nothing."""

    def __init__(self, noises: Callable[[int], Tensor], count: int) -> None:
        self.noises, self.count = noises, count
        self.mean = torch.empty(0)

    def run(self, host: HostRun) -> Tensor:
        """Find the mean (B, h, w) of the absolute difference over noises and channels."""
        sampling = host.guider.inner_model.model_sampling
        total, sigma = host.start.new_zeros(host.start[:, 0].shape), float(host.sigmas[0])
        for number in range(self.count):
            x = sampling.noise_scaling(host.sigmas[0], self.noises(number).to(host.start), host.start)
            total += host.denoised(x, sigma).abs().mean(1)
            host.show(number, host.start, x, self.count)
        self.mean = total / self.count
        return host.start


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
    family_of(model).check_unet("Difference Mask")
    samples = check_latent(latent, "Difference Mask")
    if not 0 < strength < 1:
        raise ValueError(f"Difference Mask's strength must be above 0 and below 1, not {strength:g}.")
    sigma = model.get_model_object("model_sampling").percent_to_sigma(1 - strength)
    noises = _Noises(lambda number: noise_like(samples, (seed + number) % SEEDS), maps)
    with measured(model, "Difference Mask", f"{2 * maps * len(samples)} UNet evaluations") as (counted, _):
        guider = DifferenceGuider(counted)
        guider.set_conds(target, reference)
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
