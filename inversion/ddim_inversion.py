"""DDIM inversion (Song et al. 2021): the noise that a photograph would have been drawn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..host.conditioning import Conditioning
from ..host.models import prediction_of
from .origin import Origin
from .steps import Predict, invert
from .walk import run_walk


@dataclass(frozen=True)
class DDIMInversion(Origin):
    """DDIM inversion of a batch of images with one prompt.

    All papers invert at guidance 1. The prompt is the empty one for CPAM, FPE and MasaCtrl.

    Raises:
        ValueError: when called, beside what any origin refuses, a noise mask on the latent.
    """

    name: ClassVar[str] = "DDIM inversion"

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
        kind = prediction_of(model)

        def walk(predict: Predict, image: Tensor) -> list[Tensor]:
            return invert(predict, image, sigmas, kind)

        start = latent["samples"]
        return run_walk(model, walk, start, sigmas, positive=positive, negative=negative, guidance=guidance)
