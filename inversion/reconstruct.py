"""How exactly an inversion finds its picture again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..host.conditioning import Conditioning
from ..host.cost import Cost, measured
from ..host.families import family_of
from ..host.models import latent_of, prediction_of
from .record import Inversion
from .steps import Predict, sample
from .walk import walk_inversion


@dataclass(frozen=True)
class Reconstruction:
    """How well plain DDIM sampling from the inverted noise finds the image again.

    Attributes:
        latent: LATENT samples (B, C, h, w) that sampling ended on.
        errors: per level, noisy to clean, |z - z*| / |z*| over the batch.
        cost: what it took.
    """

    latent: Tensor
    errors: tuple[float, ...]
    cost: Cost


def relative_errors(visited: list[Tensor], inversion: Inversion) -> tuple[float, ...]:
    """|z - z*| / |z*| over the batch, of latents visited from noisy to clean; |z - z*| where z* is zero (no image)."""
    stored = inversion.latents.flip(0)
    return tuple(
        float((v.cpu() - s).norm() / (s.norm() if bool(s.any()) else 1.0)) for v, s in zip(visited, stored, strict=True)
    )


def reconstruct(model: Any, inversion: Inversion, guidance: float, negative: Conditioning | None) -> Reconstruction:
    """Sample from the inverted noise with the source prompt, without any help from the trajectory.

    At guidance 1 this measures the inversion's own error; at 7.5 how far guidance drives the source away, which
    is what direct and null-text inversion mend. An inversion's own null text stands in the negative prompt's place.

    Raises:
        ValueError: another model family, or guidance other than 1 without a negative prompt.
    """
    inversion.check_model(family_of(model).name, prediction_of(model))
    sigmas = inversion.schedule

    def walk(predict: Predict, z: Tensor) -> list[Tensor]:
        return sample(predict, z, sigmas, inversion.prediction)

    with measured(model) as (counted, cost):
        visited = walk_inversion(counted, walk, inversion, sigmas, negative, guidance)
    return Reconstruction(latent_of(model, visited[-1]), relative_errors(visited, inversion), cost)
