"""DDIM inversion (Song et al. 2021): the noise that a photograph would have been drawn from.

Of a rectified flow it is Euler's: the velocity is taken at the level that a step goes to, as DDIM inversion takes the
noise, and each step is repeated at the latent that it has found (fixed point), so that stock Euler takes it back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..host.conditioning import Conditioning
from ..host.models import prediction_of
from .fixed_point import refine
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
        flow_iterations: calls of the model per step on rectified flows; 1 is Euler's inversion, more are fixed-point.

    Raises:
        ValueError: when called, beside what any origin refuses, a noise mask on the latent.
    """

    name: ClassVar[str] = "DDIM inversion"
    fine_steps: int = 0
    flow_iterations: int = 3

    def walked(self, model: Any, sigmas: list[float]) -> list[float]:
        """See `Origin`; fine levels above the noisiest that is kept lead nowhere."""
        if self.fine_steps <= self.steps:
            return sigmas
        fine = levels(model.get_model_object("model_sampling"), self.fine_steps, self.offset)
        return sorted({*sigmas, *(sigma for sigma in fine if sigma < sigmas[-1])})

    def calls(self, kind: str) -> int:
        """See `Origin`."""
        return self.flow_iterations if kind == "flow" else 1

    def told(self, kind: str) -> str:
        """See `Origin`."""
        if kind != "flow":
            return self.name
        fixed = f" with {self.flow_iterations} fixed-point iterations" if self.flow_iterations > 1 else ""
        return f"Euler inversion{fixed}"

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
            if kind == "flow":
                steps = refine(predict, image, fine, kind, 0.0, self.flow_iterations)
                return [image, *(step.z for step in steps)]
            return invert(predict, image, fine, kind)

        start = latent["samples"]
        visited = run_walk(model, walk, start, fine, positive=positive, negative=negative, guidance=guidance)
        return [visited[fine.index(sigma)] for sigma in sigmas]
