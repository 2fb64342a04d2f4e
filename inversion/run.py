"""Inversion and reconstruction runs on the host's MODEL: its guider loads, offloads, previews and cancels."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.model_sampling
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ..attention.families import family_of
from ..attention.plan import plan_of
from .ddim import Predict, invert, sample
from .record import Conditioning, Inversion
from .schedule import levels

log = logging.getLogger(__name__)

Walk = Callable[[Predict, Tensor], list[Tensor]]
"""What a run does: from the network and the start latent (DDPM scale) to the latents that it visits."""


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


class _Walker(comfy.samplers.Sampler):
    """A host sampler that hands the raw network to a walk and keeps what it visits."""

    def __init__(self, walk: Walk, kind: str) -> None:
        self.walk, self.kind = walk, kind
        self.visited: list[Tensor] = []

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
        """Run the walk from the latent image; the host's Sampler interface."""
        total = len(sigmas) - 1
        done = 0

        def predict(z: Tensor, sigma: float) -> Tensor:
            nonlocal done
            comfy.model_management.throw_exception_if_processing_interrupted()
            scale = (1 + sigma * sigma) ** 0.5
            x = z * scale
            denoised = model_wrap(x, x.new_full((len(x),), sigma), extra_args["model_options"], extra_args["seed"])
            if callback is not None:
                callback(done, denoised, x, total)
            done += 1
            if self.kind == "v":
                return (x / scale**2 - denoised) * scale / sigma
            return (x - denoised) / sigma

        assert latent_image is not None
        with torch.no_grad():
            self.visited = self.walk(predict, latent_image)
        return self.visited[-1]


def run_walk(
    model: Any, walk: Walk, start: Tensor, sigmas: list[float], positive: Any, negative: Any, guidance: float
) -> list[Tensor]:
    """Walk with the model under a guider; start (B, C, h, w) as a LATENT socket carries it."""
    walker = _Walker(walk, prediction_of(model))
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative if negative is not None else positive)
    guider.set_cfg(guidance)
    callback = latent_preview.prepare_callback(model, len(sigmas) - 1)
    guider.sample(
        torch.zeros_like(start),
        start,
        walker,
        torch.tensor(sigmas),
        callback=callback,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=0,
    )
    return walker.visited


def check_latent(latent: dict[str, Any]) -> Tensor:
    """The samples of a LATENT, checked.

    Raises:
        ValueError: not a (B, 4, h, w) latent, or it holds NaN or infinity.
    """
    samples = latent["samples"]
    if samples.ndim != 4 or samples.shape[1] != 4:
        raise ValueError(
            f"Inversion needs the latent of an SD image, shape (B, 4, h, w), not {tuple(samples.shape)}. "
            "Connect VAE Encode with this model's own VAE."
        )
    if not torch.isfinite(samples).all():
        raise ValueError(
            "The latent holds NaN or infinite values; most often a half-precision VAE made them. Start ComfyUI with "
            "--fp32-vae or load another VAE, and encode the image again."
        )
    return samples


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
        ValueError: edits on the model, an unknown family or prediction, or a broken latent.
    """
    plan = plan_of(model)
    if plan.schedule is not None or not all(control.passive for control in plan.controls):
        raise ValueError(
            "The model connected to the inversion already carries edits. Connect the model from before the edit "
            "nodes (with its LoRAs), and give the inversion to the edit nodes."
        )
    family, kind, samples = family_of(model), prediction_of(model), check_latent(latent)
    sigmas = levels(model.get_model_object("model_sampling"), steps, offset)
    log.info("DDIM inversion: %d UNet evaluations", (len(sigmas) - 1) * len(samples))

    def walk(predict: Predict, image: Tensor) -> list[Tensor]:
        return [z.float().cpu() for z in invert(predict, image, sigmas, kind)]

    visited = run_walk(model, walk, samples, sigmas, conditioning, None, 1.0)
    return Inversion(
        latents=torch.stack(visited),
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
    """

    latent: Tensor
    errors: tuple[float, ...]


def reconstruct(model: Any, inversion: Inversion, guidance: float, negative: Conditioning | None) -> Reconstruction:
    """Sample from the inverted noise with the source prompt, without any help from the trajectory.

    At guidance 1 this measures the inversion's own error; at 7.5 how far guidance drives the source away, which
    is what direct and null-text inversion mend.

    Raises:
        ValueError: another model family, or guidance other than 1 without a negative prompt.
    """
    inversion.check_model(family_of(model).name, prediction_of(model))
    if guidance != 1.0 and negative is None:
        raise ValueError(f"Reconstruction at guidance {guidance:g} needs a negative prompt; connect an empty one.")
    kind, sigmas = inversion.prediction, inversion.schedule

    def walk(predict: Predict, z: Tensor) -> list[Tensor]:
        return [v.float().cpu() for v in sample(predict, z, sigmas, kind)]

    latent_format = model.get_model_object("latent_format")
    start = latent_format.process_out(inversion.latents[-1])
    visited = run_walk(model, walk, start, sigmas, inversion.conditioning, negative, guidance)
    stored = inversion.latents.flip(0)
    errors = tuple(float((v - s).norm() / s.norm()) for v, s in zip(visited, stored, strict=True))
    return Reconstruction(latent_format.process_out(visited[-1]), errors)
