"""A generated image as a source: its trajectory is recorded while it is drawn, so that it needs no inversion."""

from __future__ import annotations

import logging
from typing import Any

import comfy.sample
import torch
from torch import Tensor

from ..host.conditioning import Conditioning
from ..host.families import family_of
from ..host.models import check_latent, prediction_of
from .ddim_inversion import check_unedited, run_walk
from .record import Inversion
from .schedule import levels
from .steps import Predict, sample

log = logging.getLogger(__name__)


def record_source(
    model: Any,
    latent: dict[str, Any],
    positive: Conditioning,
    negative: Conditioning,
    guidance: float,
    seed: int,
    steps: int,
    offset: int,
) -> tuple[Inversion, Tensor]:
    """Draw a prompt with DDIM and keep every latent on the way (Prompt-to-Prompt and FPE Algorithm 1).

    Args:
        model: host MODEL without edits; what only records attention may be on it.
        latent: LATENT that gives size and batch; what it shows is not used.
        positive: the source prompt. negative: the negative prompt, with which guidance above 1 works.
        guidance: scale of classifier-free guidance.
        seed: of the noise, as the host's samplers make it.
        steps: DDIM steps, 1 to 1000. offset: timestep offset, 0 or 1.

    Returns:
        the trajectory with the positive prompt as source, and the image as LATENT samples (B, C, h, w).

    Raises:
        ValueError: edits on the model, an unknown family or prediction, or a broken latent.
    """
    check_unedited(model, passive=True, place="Source from Prompt")
    family, kind, samples = family_of(model), prediction_of(model), check_latent(latent)
    sigmas = levels(model.get_model_object("model_sampling"), steps, offset)
    rows = len(samples) * (1 if guidance == 1.0 else 2)
    log.info("Source from Prompt: %d UNet evaluations", (len(sigmas) - 1) * rows)
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    latent_format = model.get_model_object("latent_format")

    def walk(predict: Predict, z: Tensor) -> list[Tensor]:
        return [v.float().cpu() for v in sample(predict, z, sigmas[::-1], kind)]

    visited = run_walk(model, walk, latent_format.process_out(noise), sigmas[::-1], positive, negative, guidance)
    inversion = Inversion(
        latents=torch.stack(visited[::-1]),
        sigmas=tuple(sigmas),
        steps=steps,
        offset=offset,
        family=family.name,
        prediction=kind,
        conditioning=positive,
    )
    return inversion, latent_format.process_out(visited[-1])
