"""A generated image as a source: its trajectory is recorded while it is drawn, so that it needs no inversion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..host.conditioning import Conditioning
from ..host.guider import noise_like
from ..host.models import latent_of, prediction_of
from .origin import Origin
from .steps import Predict, sample
from .walk import run_walk


@dataclass(frozen=True)
class GeneratedSource(Origin):
    """Draws a prompt with DDIM and keeps every latent on the way (Prompt-to-Prompt and FPE Algorithm 1).

    Of the latent only size and batch are used; the image is the trajectory's first latent.

    Attributes:
        seed: of the noise, as the host's samplers make it.
    """

    name: ClassVar[str] = "Source from Prompt"
    seed: int = 0

    def trajectory(
        self,
        model: Any,
        latent: dict[str, Any],
        sigmas: list[float],
        positive: Conditioning,
        negative: Conditioning | None,
        guidance: float,
    ) -> list[Tensor]:
        """See `Origin`."""
        kind, schedule = prediction_of(model), sigmas[::-1]

        def walk(predict: Predict, z: Tensor) -> list[Tensor]:
            return sample(predict, z, schedule, kind)

        start = latent_of(model, noise_like(latent["samples"], self.seed, latent.get("batch_index")))
        visited = run_walk(model, walk, start, schedule, positive=positive, negative=negative, guidance=guidance)
        return visited[::-1]
