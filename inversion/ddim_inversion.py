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
        ValueError: when called, beside what any origin refuses, a ControlNet on the prompt.
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
        if any(options.get("control") is not None for _, options in positive):
            raise ValueError(
                "The source prompt carries a ControlNet, which an edit's source branch goes without: it would not find "
                "the image again. Connect the prompt directly, and apply the ControlNet to the sampler's positive."
            )
        kind = prediction_of(model)

        def walk(predict: Predict, image: Tensor) -> list[Tensor]:
            return invert(predict, image, sigmas, kind)

        start = latent["samples"]
        return run_walk(model, walk, start, sigmas, positive=positive, negative=negative, guidance=guidance)
