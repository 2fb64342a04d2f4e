"""Inversion and reconstruction runs on the host's MODEL: its guider loads, offloads, previews and cancels."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import comfy.model_sampling
import torch
from torch import Tensor

from ..attention.families import family_of
from ..attention.plan import plan_of
from .cost import Cost, measured
from .ddim import Predict, invert, sample
from .guided import Walk, Walker, cfg_guider, run_sampler
from .record import Conditioning, Inversion
from .schedule import levels

log = logging.getLogger(__name__)


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
    if samples.ndim != 4 or samples.shape[1] != 4:
        raise ValueError(
            f"{place} needs the latent of an SD image, shape (B, 4, h, w), not {tuple(samples.shape)}. "
            "Connect VAE Encode with this model's own VAE."
        )
    if not torch.isfinite(samples).all():
        raise ValueError(
            "The latent holds NaN or infinite values; most often a half-precision VAE made them. Start ComfyUI with "
            "--fp32-vae or load another VAE, and encode the image again."
        )
    return samples


def check_unedited(model: Any, passive: bool = False, place: str = "the inversion") -> None:
    """Raise ValueError if a host MODEL carries edits, which would become part of what is measured.

    Args:
        passive: whether controls that only record may be on it.
        place: what the model is connected to, for the error.
    """
    plan = plan_of(model)
    if plan.edits or (plan.controls and not passive):
        raise ValueError(
            f"The model connected to {place} already carries edits. Connect the model from before the edit "
            "nodes (with its LoRAs), and give the inversion to the edit nodes."
        )


def run_walk(
    model: Any, walk: Walk, start: Tensor, sigmas: list[float], positive: Any, negative: Any, guidance: float
) -> list[Tensor]:
    """Walk with the model under a guider; start (B, C, h, w) as a LATENT socket carries it."""
    walker = Walker(walk, prediction_of(model))
    run_sampler(cfg_guider(model, positive, negative, guidance), walker, start, sigmas)
    return walker.visited


def ddim_inversion(
    model: Any, latent: dict[str, Any], conditioning: Conditioning, steps: int, offset: int
) -> Inversion:
    """DDIM inversion of a batch of images with one prompt, at guidance 1.

    Args:
        model: host MODEL without edits; what only records attention may be on it.
        latent: LATENT of the source images.
        conditioning: source prompt; the empty prompt for CPAM, FPE and MasaCtrl.
        steps: DDIM steps, 1 to 1000.
        offset: timestep offset, 0 or 1.

    Raises:
        ValueError: edits on the model, an unknown family or prediction, a broken latent, or a ControlNet.
    """
    check_unedited(model, passive=True)
    if any(options.get("control") is not None for _, options in conditioning):
        raise ValueError(
            "The source prompt carries a ControlNet, which an edit's source branch goes without: it would not find "
            "the image again. Connect the prompt directly, and apply the ControlNet to the sampler's positive."
        )
    family, kind, samples = family_of(model), prediction_of(model), check_latent(latent)
    sigmas = levels(model.get_model_object("model_sampling"), steps, offset)
    log.info("DDIM inversion plans %d UNet evaluations", (len(sigmas) - 1) * len(samples))

    def walk(predict: Predict, image: Tensor) -> list[Tensor]:
        return [z.float().cpu() for z in invert(predict, image, sigmas, kind)]

    walker = Walker(walk, kind)
    with measured(model) as (counted, cost):
        run_sampler(cfg_guider(counted, conditioning, None, 1.0), walker, samples, sigmas)
    log.info("DDIM inversion: %s", cost.describe())
    return Inversion(
        latents=torch.stack(walker.visited),
        sigmas=tuple(sigmas),
        steps=steps,
        offset=offset,
        family=family.name,
        prediction=kind,
        conditioning=conditioning,
    )


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
