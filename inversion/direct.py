"""Direct inversion (Ju et al. 2024, PnP Inversion): the source branch is put back on the trajectory after each step.

In this pack the source branch reads the stored trajectory itself, which is direct inversion in its exact form:
nothing has to be added. What remains are the paper's ablations, in which only a share of the offset, or only every
k-th one, is added; the trajectory is then the source branch's own, sampled here.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..host.conditioning import Conditioning
from ..host.cost import measured
from ..host.families import family_of
from ..host.guider import cfg_guider, run_sampler
from ..host.models import prediction_of
from .ddim_inversion import check_unedited
from .record import Inversion
from .steps import Predict, alpha_of, ddim_step, to_eps
from .walk import Walker

log = logging.getLogger(__name__)


def pulled(
    predict: Predict, trajectory: Sequence[Tensor], sigmas: Sequence[float], kind: str, scale: float, every: int
) -> list[Tensor]:
    """The source branch's latents, noisy to clean.

    Args:
        predict: the network, guided as the edit is.
        trajectory, sigmas: latents (B, C, h, w) and their levels, noisy to clean.
        scale: share of the offset that is added, 0 to 1; 0 is plain sampling, 1 the trajectory itself.
        every: add it at steps 0, k, 2 k ...
    """
    visited = [trajectory[0]]
    for number, (high, low) in enumerate(pairwise(sigmas)):
        z, target = visited[-1], trajectory[number + 1]
        eps = to_eps(predict(z, high), z, alpha_of(high), kind)
        landed = ddim_step(z, eps, alpha_of(high), alpha_of(low))
        # torch.lerp gives exactly the trajectory at scale 1, which adding the difference does not.
        visited.append(torch.lerp(landed, target, scale if number % every == 0 else 0.0))
    return visited


def direct_inversion(
    model: Any, inversion: Inversion, guided: tuple[float, Conditioning | None], scale: float, every: int
) -> Inversion:
    """An inversion whose trajectory is that of direct inversion's source branch.

    The image itself stays what it is, so that backgrounds are still kept as in the photograph.

    Args:
        guided: guidance scale, and the negative prompt that it needs when it is not 1.
        scale, every: see `pulled`; 1 and 1 change nothing and evaluate nothing.

    Raises:
        ValueError: edits on the model, another model, or guidance without a negative prompt.
    """
    check_unedited(model)
    inversion.check_model(family_of(model).name, prediction_of(model))
    if scale == 1.0 and every == 1:
        return inversion
    guidance, negative = guided
    negative = inversion.null_conditioning or negative
    if guidance != 1.0 and negative is None:
        raise ValueError(f"Direct inversion at guidance {guidance:g} needs a negative prompt; connect an empty one.")
    rows = (len(inversion.sigmas) - 1) * inversion.batch * (1 if guidance == 1.0 else 2)
    log.info("Direct inversion plans %d UNet evaluations", rows)

    def walk(predict: Predict, z: Tensor) -> list[Tensor]:
        stored = [latent.to(z) for latent in inversion.latents.flip(0)]
        return pulled(predict, stored, inversion.schedule, inversion.prediction, scale, every)

    walker = Walker(walk, inversion.prediction, inversion.null_at)
    with measured(model) as (counted, cost):
        start = model.get_model_object("latent_format").process_out(inversion.latents[-1])
        guider = cfg_guider(counted, inversion.conditioning, negative, guidance)
        run_sampler(guider, walker, start, inversion.schedule)
    log.info("Direct inversion: %s", cost.describe())
    visited = torch.stack([z.float().cpu() for z in reversed(walker.visited[:-1])])
    method = f"{inversion.method} + direct inversion, scale {scale:g}, every {every}"
    return replace(inversion, method=method, latents=torch.cat([inversion.latents[:1], visited]))
