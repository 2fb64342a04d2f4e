"""DDIM steps and DDIM inversion as pure functions (Song et al. 2021; Mokady et al. 2023, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor

Predict = Callable[[Tensor, float], Tensor]
"""The network: (z (B, C, h, w) in DDPM scale, sigma of the timestep) to its raw prediction, eps or v."""


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


def invert(predict: Predict, image: Tensor, sigmas: Sequence[float], kind: str) -> list[Tensor]:
    """DDIM inversion: the latents of every level, from the image to noise.

    The noise is evaluated at the destination timestep, on the latent of the level before it, as all of the
    editing papers' code does.

    Args:
        predict: the network.
        image: (B, C, h, w) clean latent in DDPM scale.
        sigmas: levels, ascending; the image lies on sigmas[0].
        kind: "eps" or "v".

    Returns:
        len(sigmas) latents (B, C, h, w).
    """
    trajectory = [image]
    for low, high in pairwise(sigmas):
        z = trajectory[-1]
        eps = to_eps(predict(z, high), z, alpha_of(low), kind)
        trajectory.append(ddim_step(z, eps, alpha_of(low), alpha_of(high)))
    return trajectory


def sample(predict: Predict, start: Tensor, sigmas: Sequence[float], kind: str) -> list[Tensor]:
    """Deterministic DDIM sampling: the latents of every level, from noise to the image.

    Args:
        predict: the network.
        start: (B, C, h, w) in DDPM scale, on sigmas[0].
        sigmas: levels, descending.
        kind: "eps" or "v".

    Returns:
        len(sigmas) latents (B, C, h, w).
    """
    visited = [start]
    for high, low in pairwise(sigmas):
        z = visited[-1]
        eps = to_eps(predict(z, high), z, alpha_of(high), kind)
        visited.append(ddim_step(z, eps, alpha_of(high), alpha_of(low)))
    return visited
