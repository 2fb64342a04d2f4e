"""Fixed-point inversion (Pan et al. 2023, AIDI; Garibi et al. 2024, ReNoise): steps that sampling takes back exactly.

A DDIM inversion step (of a rectified flow, Euler's) takes the noise at the latent that it comes from; the sampler's
step back takes it at the latent that it starts from. Here each step is repeated at the latent that it has found, until
both are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..host.conditioning import Conditioning
from ..host.cost import measured
from ..host.models import per_image
from .improvement import Found, Improvement
from .record import Inversion
from .steps import Predict, scale_of
from .walk import evaluations, walk_inversion


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
        z: (B, C, h, w) at the cleaner level, in its `Scale`.
        levels: sigmas, cleaner and noisier.
        tolerance: relative residual at which an image is done.
        iterations: evaluations per image at most, at least 1.
    """
    low, high = levels
    best, found, guess = z, z, z  # what the network is given, what it leads to, and what it is given next
    error, reach = z.new_full((len(z),), float("inf")), z.new_ones(len(z))
    residuals: list[float] = []
    for _ in range(iterations):
        # The first guess is z itself, which lies on the cleaner level; later ones lie on the noisier.
        lies = high if residuals else low
        landed = scale_of(kind).step(z, predict(guess, high), levels, guess, lies)
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
        guess = torch.lerp(best, found, per_image(reach, z))
        residuals.append(float(error.max()))
        if residuals[-1] <= tolerance:
            break
    return Refined(found, tuple(residuals))


def _where(images: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Latents (B, C, h, w): a of the images that a (B,) bool selects, b of the others."""
    return torch.where(per_image(images, a), a, b)


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
class FixedPointInversion(Improvement):
    """Inverts again, so that the sampler at this guidance takes every step back.

    The found inversion's errors are the residuals that are left, noisy to clean; its steps are `Refined`, clean to
    noisy.

    Attributes:
        tolerance, iterations: see `invert_step`.
    """

    name: ClassVar[str] = "Fixed-point inversion"
    on_flows: ClassVar[bool] = True
    tolerance: float = 1e-4
    iterations: int = 10

    def improve(self, model: Any, inversion: Inversion, negative: Conditioning | None, guidance: float) -> Found:
        """See `Improvement`."""
        steps: list[Refined] = []

        def walk(predict: Predict, image: Tensor) -> list[Tensor]:
            limits = self.tolerance, self.iterations
            steps.extend(refine(predict, image, inversion.sigmas, inversion.prediction, *limits))
            return [image, *(step.z for step in steps)]

        rows = evaluations(len(inversion.sigmas) - 1, inversion.batch, guidance)
        planned = f"{rows * min(2, self.iterations)} to {rows * self.iterations} UNet evaluations"
        with measured(model, self.name, planned) as (counted, cost):
            visited = walk_inversion(counted, walk, inversion, inversion.sigmas, negative, guidance)
        residuals = tuple(min(step.residual) for step in reversed(steps))
        latents = torch.stack([inversion.latents[0], *visited[1:]])
        found = replace(inversion, method="fixed-point inversion", errors=residuals, latents=latents)
        return Found(found, cost, tuple(steps))

    def caption(self, inversion: Inversion, guidance: float) -> tuple[str, str]:
        """See `Improvement`."""
        worst = max(inversion.errors)
        short = "" if worst <= self.tolerance else f" ({self.iterations} iterations were too few)"
        return "relative residual of each step, noise to image", f"{worst:.2g} at most{short}"
