"""Fixed-point inversion (Pan et al. 2023, AIDI; Garibi et al. 2024, ReNoise): steps that sampling takes back exactly.

A DDIM inversion step takes the noise at the latent that it comes from; the sampler's step back takes it at the
latent that it starts from. Here each step is repeated at the latent that it has found, until both are the same.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..host.conditioning import Conditioning
from ..host.cost import Cost, measured
from ..host.families import family_of
from ..host.guider import cfg_guider, run_sampler
from ..host.models import prediction_of
from .ddim_inversion import check_unedited
from .record import Inversion
from .steps import Predict, alpha_of, ddim_step, to_eps
from .walk import Walker

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refined:
    """One step.

    Attributes:
        z: (B, C, h, w), the latent of the noisier level.
        residual: per iteration, the largest |z' - z| / |z'| of the batch.
    """

    z: Tensor
    residual: tuple[float, ...]


def invert_step(
    predict: Predict, z: Tensor, levels: tuple[float, float], kind: str, tolerance: float, iterations: int
) -> Refined:
    """The latent from which the sampler's step leads to z.

    Solves z' = step(z, noise(z')) by repetition from z, which gives DDIM inversion's own step first. Where the
    residual grows, as it may with guidance, it goes back to the best latent and takes half of the way from then on.

    Args:
        z: (B, C, h, w) at the cleaner level, DDPM scale.
        levels: sigmas, cleaner and noisier.
        tolerance: relative residual at which an image is done.
        iterations: evaluations per image at most, at least 1.
    """
    low, high = (alpha_of(sigma) for sigma in levels)
    best, found, guess = z, z, z  # what the network is given, what it leads to, and what it is given next
    error, reach = z.new_full((len(z),), float("inf")), z.new_ones(len(z))
    residuals: list[float] = []
    for _ in range(iterations):
        # The first guess is z itself, which lies on the cleaner level; later ones lie on the noisier.
        eps = to_eps(predict(guess, levels[1]), guess, high if residuals else low, kind)
        landed = ddim_step(z, eps, low, high)
        residual = (landed - guess).flatten(1).norm(dim=1) / landed.flatten(1).norm(dim=1)
        if not residuals:
            # DDIM inversion's own step, from which the search begins; how far it went says nothing yet.
            best, found, guess = z, landed, landed
            residuals.append(float(residual.max()))
            continue
        is_open = error > tolerance
        better = is_open & (residual < error)
        best, found = _where(better, guess, best), _where(better, landed, found)
        error = torch.where(better, residual, error)
        reach = torch.where(is_open & ~better, reach / 2, reach)
        guess = torch.lerp(best, found, reach[:, None, None, None])
        residuals.append(float(error.max()))
        if residuals[-1] <= tolerance:
            break
    return Refined(found, tuple(residuals))


def _where(images: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Latents (B, C, h, w): a of the images that a (B,) bool selects, b of the others."""
    return torch.where(images[:, None, None, None], a, b)


def refine(
    predict: Predict, image: Tensor, sigmas: Sequence[float], kind: str, tolerance: float, iterations: int
) -> list[Refined]:
    """Fixed-point inversion from the image (B, C, h, w) through ascending sigmas; one entry per step."""
    steps: list[Refined] = []
    for levels in pairwise(sigmas):
        z = steps[-1].z if steps else image
        steps.append(invert_step(predict, z, levels, kind, tolerance, iterations))
    return steps


@dataclass(frozen=True)
class Report:
    """What fixed-point inversion found: its steps, clean to noisy, and what they cost."""

    steps: tuple[Refined, ...]
    cost: Cost


def fixed_point_inversion(
    model: Any,
    inversion: Inversion,
    guided: tuple[float, Conditioning | None],
    tolerance: float = 1e-4,
    iterations: int = 10,
) -> tuple[Inversion, Report]:
    """Invert again, so that the sampler at this guidance takes every step back.

    Args:
        model: host MODEL without edits, as the image was inverted with.
        guided: guidance scale, and the negative prompt that it needs when it is not 1. The inversion's null text,
            if it has one, goes ahead of it.
        tolerance, iterations: see `invert_step`.

    Returns:
        the inversion, whose errors are the residuals that are left, noisy to clean; and the report.

    Raises:
        ValueError: edits on the model, another model, or guidance without a negative prompt.
    """
    check_unedited(model)
    inversion.check_model(family_of(model).name, prediction_of(model))
    guidance, negative = guided
    negative = inversion.null_conditioning or negative
    if guidance != 1.0 and negative is None:
        raise ValueError(f"Fixed points at guidance {guidance:g} need a negative prompt; connect an empty one.")
    rows = (len(inversion.sigmas) - 1) * inversion.batch * (1 if guidance == 1.0 else 2)
    log.info("Fixed-point inversion plans %d to %d UNet evaluations", rows * min(2, iterations), rows * iterations)
    steps: list[Refined] = []

    def walk(predict: Predict, image: Tensor) -> list[Tensor]:
        steps.extend(refine(predict, image, inversion.sigmas, inversion.prediction, tolerance, iterations))
        return [image, *(step.z for step in steps)]

    walker = Walker(walk, inversion.prediction, inversion.null_at)
    with measured(model) as (counted, cost):
        start = model.get_model_object("latent_format").process_out(inversion.latents[0])
        guider = cfg_guider(counted, inversion.conditioning, negative, guidance)
        run_sampler(guider, walker, start, list(inversion.sigmas))
    log.info("Fixed-point inversion: %s", cost.describe())
    later = torch.stack([z.float().cpu() for z in walker.visited[1:]])
    residuals = tuple(min(step.residual) for step in reversed(steps))
    found = replace(
        inversion, method="fixed-point inversion", errors=residuals, latents=torch.cat([inversion.latents[:1], later])
    )
    return found, Report(tuple(steps), cost)
