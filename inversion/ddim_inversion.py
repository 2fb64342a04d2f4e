"""Inversion and reconstruction runs on the host's MODEL: its guider loads, offloads, previews and cancels."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from ..host.conditioning import Conditioning
from ..host.cost import measured
from ..host.families import family_of
from ..host.guider import cfg_guider, run_sampler
from ..host.marks import edits_on
from ..host.models import check_latent, prediction_of
from .record import Inversion
from .schedule import levels
from .steps import Predict, invert
from .walk import Walk, Walker

log = logging.getLogger(__name__)


def check_unedited(model: Any, passive: bool = False, place: str = "the inversion") -> None:
    """Raise ValueError if a host MODEL carries edits, which would become part of what is measured.

    Args:
        passive: whether controls that only record may be on it.
        place: what the model is connected to, for the error.
    """
    if edits_on(model) not in ("none", "passive" if passive else "none"):
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
