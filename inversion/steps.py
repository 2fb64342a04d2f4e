"""Deterministic steps between noise levels as pure functions, and what scale latents lie in.

DDIM (Song et al. 2021; Mokady et al. 2023, section 3.1) for eps and v prediction, whose latents are kept in DDPM's
variance preserving scale; Euler's steps for rectified flows (Liu et al. 2023; Esser et al. 2024), whose latents are
the sampler's own: x = sigma noise + (1 - sigma) image, sigma from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from torch import Tensor

Predict = Callable[[Tensor, float], Tensor]
"""The network: (z (B, C, h, w) in its `Scale`, sigma of the timestep) to its raw prediction: eps, v or velocity."""


def alpha_of(sigma: float) -> float:
    """Cumulative alpha of a noise level: 1 / (1 + sigma^2)."""
    return 1.0 / (1.0 + sigma * sigma)


def to_eps(prediction: Tensor, z: Tensor, alpha: float, kind: str) -> Tensor:
    """Noise from the network's prediction for a latent that lies at level `alpha`.

    For v-prediction alpha is that of the level which z lies on, not of the timestep that the network was given:
    during inversion the two differ.

    Raises:
        ValueError: kind is neither "eps" nor "v".
    """
    if kind == "eps":
        return prediction
    if kind == "v":
        return alpha**0.5 * prediction + (1 - alpha) ** 0.5 * z
    raise ValueError(f"DDIM inversion knows eps and v prediction, not {kind!r}.")


def ddim_step(z: Tensor, eps: Tensor, alpha_from: float, alpha_to: float) -> Tensor:
    """One deterministic DDIM step (eta 0), forward or backward (DDIM, Eq 12).

    Args:
        z, eps: (B, C, h, w).
        alpha_from, alpha_to: cumulative alphas of the two levels.
    """
    clean = (z - (1 - alpha_from) ** 0.5 * eps) / alpha_from**0.5
    return alpha_to**0.5 * clean + (1 - alpha_to) ** 0.5 * eps


class Scale(Protocol):
    """How stored latents relate to the sampler's, and how a deterministic step leads from level to level."""

    def to_sampler(self, z: Tensor, sigma: float) -> Tensor:
        """The sampler's latent of a stored one that lies at sigma."""
        ...

    def from_sampler(self, x: Tensor, sigma: float) -> Tensor:
        """The stored latent of a sampler's one that lies at sigma."""
        ...

    def raw(self, denoised: Tensor, z: Tensor, sigma: float) -> Tensor:
        """The network's own output for z, from what the host made of it: the clean latent."""
        ...

    def step(self, z: Tensor, prediction: Tensor, levels: tuple[float, float], given: Tensor, lies: float) -> Tensor:
        """One step of z between two levels (from, to), with the network's prediction.

        Args:
            given: the latent that the network was given. lies: sigma of the level which that latent lies on; during
                inversion it is not the one that the network was told.
        """
        ...


@dataclass(frozen=True)
class Preserving:
    """DDPM's variance preserving scale, x = z sqrt(1 + sigma^2); `kind` is "eps" or "v"."""

    kind: str

    def to_sampler(self, z: Tensor, sigma: float) -> Tensor:
        """See `Scale`."""
        return z * (1 + sigma * sigma) ** 0.5

    def from_sampler(self, x: Tensor, sigma: float) -> Tensor:
        """See `Scale`."""
        return x / (1 + sigma * sigma) ** 0.5

    def raw(self, denoised: Tensor, z: Tensor, sigma: float) -> Tensor:
        """See `Scale`."""
        scale = (1 + sigma * sigma) ** 0.5
        if self.kind == "v":
            return (z / scale - denoised) * scale / sigma
        return (z * scale - denoised) / sigma

    def step(self, z: Tensor, prediction: Tensor, levels: tuple[float, float], given: Tensor, lies: float) -> Tensor:
        """See `Scale`; DDIM's."""
        eps = to_eps(prediction, given, alpha_of(lies), self.kind)
        return ddim_step(z, eps, alpha_of(levels[0]), alpha_of(levels[1]))


@dataclass(frozen=True)
class Flow:
    """A rectified flow's own scale, in which the network predicts the velocity noise - image."""

    def to_sampler(self, z: Tensor, sigma: float) -> Tensor:
        """See `Scale`."""
        return z

    def from_sampler(self, x: Tensor, sigma: float) -> Tensor:
        """See `Scale`."""
        return x

    def raw(self, denoised: Tensor, z: Tensor, sigma: float) -> Tensor:
        """See `Scale`."""
        return (z - denoised) / sigma

    def step(self, z: Tensor, prediction: Tensor, levels: tuple[float, float], given: Tensor, lies: float) -> Tensor:
        """See `Scale`; Euler's, which is exact where the velocity is constant."""
        return z + (levels[1] - levels[0]) * prediction


_SCALES: dict[str, Scale] = {"eps": Preserving("eps"), "v": Preserving("v"), "flow": Flow()}


def scale_of(kind: str) -> Scale:
    """The scale of latents by what the network predicts.

    Raises:
        ValueError: none of "eps", "v" and "flow".
    """
    if kind not in _SCALES:
        raise ValueError(f"Connect another model: inversion knows {', '.join(_SCALES)} prediction, not {kind!r}.")
    return _SCALES[kind]


def invert(predict: Predict, image: Tensor, sigmas: Sequence[float], kind: str) -> list[Tensor]:
    """DDIM inversion, of a flow Euler's: the latents of every level, from the image to noise.

    The noise is evaluated at the destination timestep, on the latent of the level before it, as all of the
    editing papers' code does.

    Args:
        predict: the network.
        image: (B, C, h, w) clean latent in its `Scale`.
        sigmas: levels, ascending; the image lies on sigmas[0].
        kind: "eps", "v" or "flow".

    Returns:
        len(sigmas) latents (B, C, h, w).
    """
    trajectory, scale = [image], scale_of(kind)
    for low, high in pairwise(sigmas):
        z = trajectory[-1]
        trajectory.append(scale.step(z, predict(z, high), (low, high), z, low))
    return trajectory


def sample(predict: Predict, start: Tensor, sigmas: Sequence[float], kind: str) -> list[Tensor]:
    """Deterministic sampling (DDIM, Euler): the latents of every level, from noise to the image.

    Args:
        predict: the network.
        start: (B, C, h, w) in its `Scale`, on sigmas[0].
        sigmas: levels, descending.
        kind: "eps", "v" or "flow".

    Returns:
        len(sigmas) latents (B, C, h, w).
    """
    visited, scale = [start], scale_of(kind)
    for high, low in pairwise(sigmas):
        z = visited[-1]
        visited.append(scale.step(z, predict(z, high), (high, low), z, high))
    return visited
