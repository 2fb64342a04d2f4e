"""How exactly an inversion finds its picture again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..host.conditioning import Conditioning
from ..host.cost import Cost, measured
from ..host.families import family_of
from ..host.guider import cfg_guider, run_sampler
from ..host.models import prediction_of
from .record import Inversion
from .steps import Predict, sample
from .walk import Walker


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
    """|z - z*| / |z*| over the batch, of latents visited from noisy to clean."""
    stored = inversion.latents.flip(0)
    return tuple(float((v.cpu() - s).norm() / s.norm()) for v, s in zip(visited, stored, strict=True))


def reconstruct(model: Any, inversion: Inversion, guidance: float, negative: Conditioning | None) -> Reconstruction:
    """Sample from the inverted noise with the source prompt, without any help from the trajectory.

    At guidance 1 this measures the inversion's own error; at 7.5 how far guidance drives the source away, which
    is what direct and null-text inversion mend. An inversion's own null text stands in the negative prompt's place.

    Raises:
        ValueError: another model family, or guidance other than 1 without a negative prompt.
    """
    inversion.check_model(family_of(model).name, prediction_of(model))
    negative = inversion.null_conditioning or negative
    if guidance != 1.0 and negative is None:
        raise ValueError(f"Reconstruction at guidance {guidance:g} needs a negative prompt; connect an empty one.")
    kind, sigmas = inversion.prediction, inversion.schedule

    def walk(predict: Predict, z: Tensor) -> list[Tensor]:
        return [v.float().cpu() for v in sample(predict, z, sigmas, kind)]

    latent_format = model.get_model_object("latent_format")
    walker = Walker(walk, kind, inversion.null_at)
    with measured(model) as (counted, cost):
        start = latent_format.process_out(inversion.latents[-1])
        run_sampler(cfg_guider(counted, inversion.conditioning, negative, guidance), walker, start, sigmas)
    latent = latent_format.process_out(walker.visited[-1])
    return Reconstruction(latent, relative_errors(walker.visited, inversion), cost)
