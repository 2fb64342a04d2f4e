"""Clusters and principal components of self-attention maps (Dynamic Prompt Learning, background mask)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

ROUNDS = 300
"""Most iterations of one K-means start."""
ITERATIONS, SPARE = 30, 8
"""Of the search for principal components, and further directions that make it settle sooner."""


def k_means(points: Tensor, clusters: int, restarts: int = 10, seed: int = 1) -> Tensor:
    """Cluster numbers (N,) of points (N, D) by Lloyd's algorithm with k-means++ starts; the best start is taken.

    Clusters are numbered by size, 0 for the largest, so that a number means the same in every run.

    Raises:
        ValueError: more clusters than points.
    """
    if not 1 <= clusters <= len(points):
        raise ValueError(f"{len(points)} points cannot be cut into {clusters} clusters; choose fewer clusters.")
    points = points.float()
    rng = torch.Generator().manual_seed(seed)
    best, least = torch.zeros(len(points), dtype=torch.long), float("inf")
    for _ in range(restarts):
        labels, spread = _lloyd(points, _spread_out(points, clusters, rng))
        if spread < least:
            best, least = labels, spread
    order = torch.bincount(best, minlength=clusters).argsort(descending=True, stable=True)
    return order.argsort()[best]


def _squares(points: Tensor, centres: Tensor) -> Tensor:
    """Squared distances (N, K)."""
    cross = points @ centres.T
    return (points.square().sum(1, keepdim=True) - 2 * cross + centres.square().sum(1)).clamp(min=0)


def _spread_out(points: Tensor, clusters: int, rng: torch.Generator) -> Tensor:
    """Start centres (K, D), each drawn by its squared distance to those before (k-means++)."""
    centres = points[torch.randint(len(points), (1,), generator=rng)]
    while len(centres) < clusters:
        weights = _squares(points, centres).amin(1)
        # Points that coincide with all centres leave no distance to draw by.
        weights = weights if weights.sum() > 0 else torch.ones_like(weights)
        chosen = torch.multinomial(weights, 1, generator=rng)
        centres = torch.cat([centres, points[chosen]])
    return centres


def _lloyd(points: Tensor, centres: Tensor) -> tuple[Tensor, float]:
    """Labels (N,) and the sum of squared distances to the centres where it settles."""
    labels = torch.full((len(points),), -1)
    squares = _squares(points, centres)
    for _ in range(ROUNDS):
        squares = _squares(points, centres)
        nearest = squares.argmin(1)
        if torch.equal(nearest, labels):
            break
        labels = nearest
        counts = torch.bincount(labels, minlength=len(centres))
        sums = torch.zeros_like(centres).index_add_(0, labels, points)
        # A cluster that lost all its points stays where it was.
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centres)
    return labels, float(squares.amin(1).sum())


def principal_components(points: Tensor, count: int = 3) -> Tensor:
    """Points (N, D) on their first principal components (N, count), each stretched to 0..1.

    A component's sign is chosen so that its largest deviation from the mean is upwards.
    """
    centred = (points - points.mean(0)).double()
    rng = torch.Generator().manual_seed(0)
    # Subspace iteration: a full decomposition of 4096 cells would take minutes.
    basis = torch.randn(points.shape[1], min(count + SPARE, *points.shape), generator=rng, dtype=torch.float64)
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(centred.T @ (centred @ basis)).Q
    u, s, _ = torch.linalg.svd(centred @ basis, full_matrices=False)
    scores = torch.zeros(len(points), count, dtype=torch.float64)
    there = min(count, u.shape[1])
    scores[:, :there] = u[:, :there] * s[:there]
    scores = scores * scores.gather(0, scores.abs().argmax(0, keepdim=True)).sign()
    least, most = scores.amin(0), scores.amax(0)
    return ((scores - least) / (most - least).clamp(min=1e-12)).float()


def assign(labels: Tensor, clusters: int, noun_maps: Mapping[str, Tensor], least: float = 0.2) -> list[str | None]:
    """The noun of each cluster, None for background (DPL section 3.1).

    A cluster belongs to the noun whose map has the largest mean on it, and to the background when that mean is
    less than `least`.

    Args:
        labels: (N,) cluster numbers.
        noun_maps: (N,) maps by noun, not negative; each is normalised as (m - min) / max.
    """
    normal = {noun: (m - m.min()) / m.max().clamp(min=1e-12) for noun, m in noun_maps.items()}
    found: list[str | None] = []
    for number in range(clusters):
        inside = labels == number
        agreement = {noun: float(m[inside].mean()) if inside.any() else 0.0 for noun, m in normal.items()}
        noun = max(agreement, key=agreement.__getitem__, default=None)
        found.append(noun if noun is not None and agreement[noun] >= least else None)
    return found
