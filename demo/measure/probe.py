"""Whether attention maps tell what a word says: a classifier on them (Free-Prompt-Editing, section 3.3).

Pure functions. A map that a classifier can name the colour by carries the colour, and not only where it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN = 256
RATE = 1e-3
UPDATES = 200
"""Of Adam, each on all training images. The paper names two layers, and no width, rate or number of updates."""
HELD_OUT = 0.2
"""Share of the images that the classifier is tested on."""
SIDE = 16
"""Tokens along a side to which self-attention maps are pooled: larger ones have too many pairs of tokens."""


def pooled(maps: Tensor, shape: tuple[int, int]) -> Tensor:
    """Self-attention maps (B, N, N) of h x w = N tokens, both sides averaged to at most SIDE x SIDE: (B, M, M)."""
    small = min(SIDE, shape[0]), min(SIDE, shape[1])
    if small == tuple(shape):
        return maps

    def fewer(x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x.unflatten(-1, shape), small).flatten(-2)

    return fewer(fewer(maps).transpose(1, 2)).transpose(1, 2)


def held_out(noises: Sequence[int], split: int) -> Tensor:
    """Which images (n,) are for the test: those of a share of the noises that they began with, chosen anew by split."""
    there = sorted(set(noises))
    order = torch.randperm(len(there), generator=torch.Generator().manual_seed(split)).tolist()
    chosen = {there[place] for place in order[: max(1, round(HELD_OUT * len(there)))]}
    return torch.tensor([noise in chosen for noise in noises])


def coordinates(features: Tensor, test: Tensor) -> Tensor:
    """Features (n, D), standardised by the training images, in the training images' own span: (n, at most D).

    Of the training images nothing is lost, and a map of many thousand cells becomes as small as there are images.
    """
    train = features[~test]
    spread = train.std(0)
    scaled = (features - train.mean(0)) / torch.where(spread > 0, spread, 1)
    basis = torch.linalg.qr(scaled[~test].T).Q
    found = scaled @ basis
    return found / found[~test].std().clamp(min=torch.finfo(found.dtype).tiny)


def shuffled(labels: Tensor, seed: int) -> Tensor:
    """Labels (n,) dealt out anew: what a classifier still finds then is chance."""
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


def accuracies(points: Tensor, labels: Tensor, test: Tensor, seed: int) -> Tensor:
    """Share of a class's test images that the classifier names rightly, (classes,) in 0..1.

    Args:
        points: (n, D). labels: (n,) classes from 0. test: (n,) bool, the images to test on; each class has some.
        seed: of the classifier's weights.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        points, labels = points.clone(), labels.clone()
        count = int(labels.max()) + 1
        network = nn.Sequential(nn.Linear(points.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, count))
        adam = torch.optim.Adam(network.parameters(), lr=RATE)
        for _ in range(UPDATES):
            adam.zero_grad()
            F.cross_entropy(network(points[~test]), labels[~test]).backward()
            adam.step()
        said = network(points[test]).argmax(1)
    right = (said == labels[test]).float()
    return torch.stack([right[labels[test] == label].mean() for label in range(count)])
