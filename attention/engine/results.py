"""What sampler runs leave for other nodes to show: each run's own, found again by the latent that it ended with.

A patched model may be sampled by two samplers, and the host may answer from its cache; a viewer must then not show
another run's maps beside a picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ...host.progress import prompt_id

T = TypeVar("T")
RUNS = 4
"""Most runs whose results are kept."""
SAME = 1e-2
"""Relative difference up to which two latents are one: it may have been handed on in half precision."""


@dataclass(frozen=True, eq=False)
class _Kept(Generic[T]):
    latent: Tensor
    prompt: str
    value: T


class Results(Generic[T]):
    """The results of the last runs.

    Args:
        missing: the error's text when there are none: what to connect.
        runs: how many are kept at most.
    """

    def __init__(self, missing: str, runs: int = RUNS) -> None:
        self._missing, self._runs = missing, runs
        self._kept: list[_Kept[T]] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Results[T]:
        return self

    @property
    def empty(self) -> bool:
        """Whether no run has left anything yet."""
        return not self._kept

    def keep(self, latent: Tensor, value: T) -> None:
        """Hold a run's result beside the latent (B, C, h, w) that the run ended with."""
        self._kept = [*self._kept[1 - self._runs :], _Kept(latent.detach().float().cpu(), prompt_id(), value)]

    def found(self, latent: Tensor, within: float = SAME) -> T | None:
        """The result of the run that ended with a latent (B, C, h, w); None if none is known.

        Args:
            within: relative difference up to which it is the same.
        """
        alike = [kept for kept in reversed(self._kept) if kept.latent.shape == latent.shape]
        distances = [relative_distance(kept.latent, latent) for kept in alike]
        nearest = min(distances, default=float("inf"))
        return alike[distances.index(nearest)].value if nearest <= within else None

    def of(self, after: Any = None) -> T:
        """The result of the run that `after` comes from.

        Args:
            after: a LATENT, which tells the run by its values. Anything else (an image, an inversion) tells only that
                the run is over: then it is the one of the workflow that is being executed, or the only one.

        Raises:
            ValueError: there is none, or several runs could be meant.
        """
        if not self._kept:
            raise ValueError(self._missing)
        samples = after.get("samples") if isinstance(after, dict) else None
        if isinstance(samples, Tensor):
            found = self.found(samples)
            if found is not None:
                return found
        here = [kept for kept in self._kept if kept.prompt == prompt_id()] or self._kept
        if len(here) == 1 or after is None:
            return here[-1].value
        raise ValueError(
            f"Connect the sampler's own latent to 'after': the model was sampled {len(here)} times, and what is "
            "connected there does not tell which of the runs is to be shown."
        )


def relative_distance(one: Tensor, two: Tensor) -> float:
    """Difference of two latents of one shape, relative to the first."""
    one, two = one.detach().float().cpu(), two.detach().float().cpu()
    return float(torch.linalg.vector_norm(one - two) / torch.linalg.vector_norm(one).clamp_min(1e-12))
