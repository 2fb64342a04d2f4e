"""The source held after a step: what local blend, MAG-Edit and Proximal Guidance share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from ...host.models import over_frames
from .control import LatentControl, Slopes
from .moment import Moment


def keep_source(x: Tensor, source: Tensor, mask: Tensor) -> Tensor:
    """z = M z + (1 - M) z*: latents (B, C, h, w), of which the mask (B, 1, h, w) leaves the source where it is 0."""
    return torch.lerp(source.to(x).expand_as(x), x, over_frames(mask, x))


class SourceAfterStep(LatentControl, ABC):
    """Replaces the sampler's own latent by the source's outside a mask, after each step from a first one on.

    To do so after a step is to do it before the next one; after the last step it is the run's result.
    """

    @abstractmethod
    def first(self, run: Moment, state: Any) -> int:
        """The first step whose outcome is replaced."""

    @abstractmethod
    def mask(self, run: Moment, state: Any, latent: Tensor) -> Tensor | None:
        """As `keep_source` takes it for a latent; None leaves all of it as it is."""

    def acts(self, run: Moment, state: Any) -> bool:
        """Not without an image to hold."""
        return run.inversion is not None

    def before(self, run: Moment, state: Any, x: Tensor, network: Slopes) -> Tensor:
        """The step before is over; at the first one none that counts is."""
        if run.inversion is None or run.step <= self.first(run, state):
            return x
        return self._held(run, state, x, run.source(x.device))

    def result(self, run: Moment, state: Any, latent: Tensor, source: Tensor) -> Tensor:
        """The last step's outcome; above the cleanest level it is the one before the step that would come next."""
        due = run.whole or run.step > self.first(run, state)
        return self._held(run, state, latent, source) if due else latent

    def _held(self, run: Moment, state: Any, latent: Tensor, source: Tensor) -> Tensor:
        mask = self.mask(run, state, latent)
        return latent if mask is None else keep_source(latent, source, mask)
