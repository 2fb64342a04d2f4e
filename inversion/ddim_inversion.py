"""DDIM inversion (Song et al. 2021): the noise that a photograph would have been drawn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..host.conditioning import Conditioning
from ..host.models import prediction_of
from .origin import Origin
from .schedule import levels
from .steps import Predict, invert
from .walk import run_walk


@dataclass(frozen=True)
class DDIMInversion(Origin):
    """DDIM inversion of a batch of images with one prompt.

    All papers invert at guidance 1. The prompt is the empty one for CPAM, FPE and MasaCtrl.

    Attributes:
        fine_steps: invert in so many steps, and keep the latents of the schedule's own levels; 0 inverts in the
            schedule's steps. Plug-and-Play's authors invert in 999 steps and edit in 50.

    Raises:
        ValueError: when called, beside what any origin refuses, a noise mask on the latent.
    """

    name: ClassVar[str] = "DDIM inversion"
    fine_steps: int = 0

    def walked(self, model: Any, sigmas: list[float]) -> list[float]:
        """See `Origin`; fine levels above the noisiest that is kept lead nowhere."""
        if self.fine_steps <= self.steps:
            return sigmas
        fine = levels(model.get_model_object("model_sampling"), self.fine_steps, self.offset)
        return sorted({*sigmas, *(sigma for sigma in fine if sigma < sigmas[-1])})

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
        if latent.get("noise_mask") is not None:
            raise ValueError(
                "Connect VAE Encode's latent without a noise mask: DDIM inversion is of the whole photograph, and a "
                "mask on its latent would have no effect (VAE Encode for Inpainting also paints masked pixels grey). "
                "Exact Background keeps the image outside a mask."
            )
        kind, fine = prediction_of(model), self.walked(model, sigmas)

        def walk(predict: Predict, image: Tensor) -> list[Tensor]:
            return invert(predict, image, fine, kind)

        start = latent["samples"]
        visited = run_walk(model, walk, start, fine, positive=positive, negative=negative, guidance=guidance)
        return [visited[fine.index(sigma)] for sigma in sigmas]
