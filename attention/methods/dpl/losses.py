"""Dynamic Prompt Learning's losses on the nouns' cross-attention maps, and how far each is to fall (Eqs 6-8, 10).

Pure functions. A is the attention (N, L) of N = h w cells to the L places of the text: the mean over the heads and
layers of the prompt's row. A noun is one or several places; its map is the mean over them. The released code has
means where the paper has sums, and its thresholds were tuned with them; `total` gives the paper's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...engine.reading import Maps
from ...words.alignment import CHUNK

SHARPNESS = 100.0
"""By which attention is multiplied before the softmax over tokens (Attend-and-Excite)."""
DEVIATION = 0.5
"""Of the Gaussian that smooths a noun's map, in cells."""


@dataclass(frozen=True)
class Term:
    """One of the three losses.

    Attributes:
        weight: its lambda in the sum (Eq 9).
        start, decay: beta and alpha of its threshold, beta exp(-i / alpha) (Eq 10).
    """

    weight: float
    start: float
    decay: float

    def bound(self, i: float) -> float:
        """Value under which it is content at step i of 50, counted from the noisy end."""
        return self.start * math.exp(-i / self.decay)


def attention(maps: Maps) -> Tensor:
    """A (N, L) of one image: the mean of maps (1, H, N, L) over their heads, then over the layers."""
    return torch.stack([found[0].mean(0) for found in maps.values()]).mean(0)


def noun_maps(attention: Tensor, nouns: Sequence[Sequence[int]]) -> Tensor:
    """(N, L) and K nouns' places to their maps (K, N)."""
    return torch.stack([attention[:, list(places)].mean(-1) for places in nouns])


def balancing(attention: Tensor, nouns: Sequence[Sequence[int]], shape: tuple[int, int]) -> Tensor:
    """L_at (Eq 8), 0..1: how far the weakest noun is from having a cell of its own.

    Tokens compete for each cell by a softmax, from which the first and the last place of each part of the prompt are
    left out; a noun's share is smoothed, and its largest value counts.

    Args:
        attention: (N, L). nouns: K nouns' places. shape: (h, w), h w = N.
    """
    places = [place for place in range(attention.shape[-1]) if place % CHUNK not in (0, CHUNK - 1)]
    shares = torch.softmax(SHARPNESS * attention[:, places], dim=-1)  # (N, L - 2) for one part
    column = {place: index for index, place in enumerate(places)}
    maps = noun_maps(shares, [[column[place] for place in noun] for noun in nouns])  # (K, N)
    peaks = smoothed(maps.unflatten(1, shape)).flatten(1).amax(1)  # (K,)
    return (1 - peaks).clamp(min=0).amax()


def smoothed(maps: Tensor) -> Tensor:
    """Maps (K, h, w) under the 3 x 3 Gaussian of Attend-and-Excite, exp(-((x - mu) / (2 s))^2), mirrored at borders."""
    place = torch.tensor([-1.0, 0.0, 1.0], dtype=maps.dtype, device=maps.device)
    line = torch.softmax(-((place / (2 * DEVIATION)) ** 2), dim=0)
    rows, columns = ("reflect" if side > 1 else "replicate" for side in maps.shape[-2:])  # one cell mirrors itself
    x = F.pad(F.pad(maps[:, None], (1, 1, 0, 0), mode=columns), (0, 0, 1, 1), mode=rows)
    return F.conv2d(x, (line[:, None] * line)[None, None])[:, 0]


def disjoint(maps: Tensor, total: bool = False) -> Tensor:
    """L_dj (Eq 6): the cosine of nouns' maps (K, N), mean over pairs, or with `total` the sum over ordered pairs."""
    i, j = torch.triu_indices(len(maps), len(maps), 1, device=maps.device)
    cosines = F.cosine_similarity(maps[i], maps[j], dim=-1)
    return 2 * cosines.sum() if total else cosines.mean()


def background(maps: Tensor, mask: Tensor, total: bool = False) -> Tensor:
    """L_bg (Eq 7): the cosine of nouns' maps (K, N) with the background (N,), their mean or with `total` their sum."""
    cosines = F.cosine_similarity(maps, mask.to(maps)[None], dim=-1)
    return cosines.sum() if total else cosines.mean()


@dataclass(frozen=True)
class Losses:
    """Which losses there are, and how they are weighed; the defaults are the released code's.

    Attributes:
        at, dj, bg: attention balancing, disjoint object attention, background leakage.
        total: sums where the released code has means.
    """

    at: Term = Term(1.0, 0.3, 25.0)
    dj: Term = Term(0.05, 0.9, 25.0)
    bg: Term = Term(0.05, 0.7, 50.0)
    total: bool = False

    def __call__(
        self, attention: Tensor, nouns: Sequence[Sequence[int]], mask: Tensor | None, shape: tuple[int, int]
    ) -> dict[str, Tensor]:
        """The losses by name, scalars: all three, without background (mask None) two, for one noun "bg" alone.

        Args:
            attention: (N, L). nouns: K nouns' places. mask: (N,) 1 on the background. shape: (h, w), h w = N.
        """
        maps, found = noun_maps(attention, nouns), {}
        if len(nouns) > 1:
            found["at"] = balancing(attention, nouns, shape)
            found["dj"] = disjoint(maps, self.total)
        if mask is not None:
            found["bg"] = background(maps, mask, self.total)
        return found

    def term(self, name: str) -> Term:
        """One of them by its name."""
        return {"at": self.at, "dj": self.dj, "bg": self.bg}[name]

    def weighed(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Eq 9, a scalar."""
        return torch.stack([self.term(name).weight * loss for name, loss in losses.items()]).sum()

    def content(self, values: Mapping[str, float], i: float) -> bool:
        """Whether all are below their thresholds at step i of 50."""
        return all(value < self.term(name).bound(i) for name, value in values.items())
