"""The source held after a step: what local blend, MAG-Edit and Proximal Guidance share."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from .control import Control, Slopes
from .moment import Moment


def keep_source(x: Tensor, source: Tensor, mask: Tensor) -> Tensor:
    """z = M z + (1 - M) z*: latents (B, C, h, w), of which the mask (B, 1, h, w) leaves the source where it is 0."""
    return torch.lerp(source.to(x).expand_as(x), x, mask)


class SourceAfterStep(Control, ABC):
    """Replaces the sampler's own latent by the source's outside a mask, after each step from a first one on.

    To do so after a step is to do it before the next one; after the last step it is the run's result.
    """

    moves = True

    @abstractmethod
    def first(self, run: Moment) -> int:
        """The first step whose outcome is replaced."""

    @abstractmethod
    def mask(self, run: Moment, latent: Tensor) -> Tensor | None:
        """As `keep_source` takes it for a latent; None leaves all of it as it is."""

    def moved(self, run: Moment, x: Tensor, network: Slopes) -> Tensor:
        """The step before is over; at the first one none that counts is."""
        assert run.inversion is not None
        return x if run.step <= self.first(run) else self._held(run, x, run.inversion.at(run.sigma))

    def result(self, run: Moment, latent: Tensor) -> Tensor:
        """The last step's outcome."""
        assert run.inversion is not None
        return self._held(run, latent, run.inversion.latents[0])

    def _held(self, run: Moment, latent: Tensor, source: Tensor) -> Tensor:
        mask = self.mask(run, latent)
        return latent if mask is None else keep_source(latent, source, mask)
