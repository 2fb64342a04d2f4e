"""Exact background: the source's own trajectory outside a mask, at every step.

The latent blending of Prompt-to-Prompt (local blend) and MAG-Edit, for any sampler: z = M z + (1 - M) z*.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..inversion.record import Inversion
from .control import Control
from .guidance import Network
from .masks import check_aspect, for_batch, resize
from .run import Run


def keep_source(x: Tensor, source: Tensor, mask: Tensor) -> Tensor:
    """z = M z + (1 - M) z*: latents (B, C, h, w), of which the mask (B, 1, h, w) leaves the source where it is 0."""
    return torch.lerp(source.to(x).expand_as(x), x, mask)


class SourceAfterStep(Control, ABC):
    """Replaces the sampler's own latent by the source's outside a mask, after each step from a first one on.

    To do so after a step is to do it before the next one; after the last step it is the run's result.
    """

    moves = True

    @abstractmethod
    def first(self, run: Run) -> int:
        """The first step whose outcome is replaced."""

    @abstractmethod
    def mask(self, run: Run, latent: Tensor) -> Tensor | None:
        """As `keep_source` takes it for a latent; None leaves all of it as it is."""

    def moved(self, run: Run, x: Tensor, network: Network) -> Tensor:
        """The step before is over; at the first one none that counts is."""
        assert run.inversion is not None
        return x if run.step <= self.first(run) else self._held(run, x, run.inversion.at(run.sigma))

    def result(self, run: Run, latent: Tensor) -> Tensor:
        """The last step's outcome."""
        assert run.inversion is not None
        return self._held(run, latent, run.inversion.latents[0])

    def _held(self, run: Run, latent: Tensor, source: Tensor) -> Tensor:
        mask = self.mask(run, latent)
        return latent if mask is None else keep_source(latent, source, mask)


@dataclass(frozen=True, eq=False)
class ExactBackground(Control):
    """Keep the image outside a mask exactly, up to the autoencoder.

    Attributes:
        changed: (M, H, W) bool, where the image may change.
        start: share of the steps after which blending begins (MAG-Edit 0.7, Prompt-to-Prompt 0.2).
        name: the node's that put it there.
    """

    changed: Tensor
    start: float = 0.0
    name: str = "Exact Background"
    guidable = True

    def model_input(self, run: Run, x: Tensor, sigma: float) -> Tensor:
        """The network sees the source's latent outside the mask."""
        return self._blend(run, x, lambda inversion: inversion.at(sigma))

    def denoised(self, run: Run, denoised: Tensor, x: Tensor, sigma: float) -> Tensor:
        """Outside the mask the sampler is steered along the source's own step."""
        return self._blend(run, denoised, lambda inversion: inversion.clean_at(sigma))

    def result(self, run: Run, latent: Tensor) -> Tensor:
        """The image's own latent outside the mask, whatever the sampler's last step rounded it to."""
        return self._blend(run, latent, lambda inversion: inversion.latents[0])

    def _blend(self, run: Run, x: Tensor, source: Callable[[Inversion], Tensor]) -> Tensor:
        assert run.inversion is not None
        mask = run.once((self, x.shape, x.device, x.dtype), lambda: self._cells(x))
        return keep_source(x, source(run.inversion), mask)

    def _cells(self, like: Tensor) -> Tensor:
        """(B, 1, h, w) as `like`: 1 where any pixel of a latent cell changes."""
        cells = resize(self.changed, (like.shape[-2], like.shape[-1]), "any")
        return for_batch(cells, like.shape[0], f"mask of {self.name}")[:, None].to(like)

    def prepare(self, run: Run) -> None:
        """Refuse a mask of another picture before anything is computed."""
        check_aspect(self.changed, run.size, f"mask of {self.name}")

    def acts(self, run: Run) -> bool:
        return run.inversion is not None and run.step >= round(self.start * run.steps)
