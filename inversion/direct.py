"""Direct inversion (Ju et al. 2024, PnP Inversion): the source branch is put back on the trajectory after each step.

In this pack the source branch reads the stored trajectory itself, which is direct inversion in its exact form:
nothing has to be added. On rectified flows this is DirectEdit's form (2026): the network sees the stored latent
itself, as if the difference were added before the step and not after it, so that what edits take from the source has
no drift. What remains are the paper's ablations, in which only a share of the offset, or only every k-th one, is
added; the trajectory is then the source branch's own, sampled here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..host.conditioning import Conditioning
from ..host.cost import Cost, measured
from .improvement import Found, Improvement
from .record import Inversion
from .steps import Predict, scale_of
from .walk import evaluations, walk_inversion


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
        landed = scale_of(kind).step(z, predict(z, high), (high, low), z, high)
        # torch.lerp gives exactly the trajectory at scale 1, which adding the difference does not.
        visited.append(torch.lerp(landed, target, scale if number % every == 0 else 0.0))
    return visited


@dataclass(frozen=True)
class DirectInversion(Improvement):
    """An inversion whose trajectory is that of direct inversion's source branch.

    The image itself stays what it is, so that backgrounds are still kept as in the photograph.

    Attributes:
        scale, every: see `pulled`; 1 and 1 change nothing and evaluate nothing.
    """

    name: ClassVar[str] = "Direct inversion"
    on_flows: ClassVar[bool] = True
    scale: float = 1.0
    every: int = 1

    def improve(self, model: Any, inversion: Inversion, negative: Conditioning | None, guidance: float) -> Found:
        """See `Improvement`."""
        if self.scale == 1.0 and self.every == 1:
            return Found(inversion, Cost(inversion.latents.device))

        def walk(predict: Predict, z: Tensor) -> list[Tensor]:
            stored = [latent.to(z) for latent in inversion.latents.flip(0)]
            return pulled(predict, stored, inversion.schedule, inversion.prediction, self.scale, self.every)

        rows = evaluations(len(inversion.sigmas) - 1, inversion.batch, guidance)
        with measured(model, self.name, f"{rows} UNet evaluations") as (counted, cost):
            visited = walk_inversion(counted, walk, inversion, inversion.schedule, negative, guidance)
        method = f"{inversion.method} + direct inversion, scale {self.scale:g}, every {self.every}"
        latents = torch.stack([inversion.latents[0], *reversed(visited[:-1])])
        return Found(replace(inversion, method=method, latents=latents), cost)
