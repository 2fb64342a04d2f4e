"""Masks as indices of image tokens, for attention that leaves tokens out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Places:
    """Indices of image tokens in one layer, for the rows of one image (or of all, when they share masks).

    Attributes:
        rows: which of the target rows.
        inside, outside: queries on either side of the target mask (Eq 3).
        background: source keys that the background reads (Eq 1).
        foreground: source keys that a retained object reads (Eq 2).
    """

    rows: slice
    inside: Tensor
    outside: Tensor
    background: Tensor
    foreground: Tensor

    @property
    def indices(self) -> tuple[Tensor, ...]:
        """In the order of the fields."""
        return self.inside, self.outside, self.background, self.foreground


def on_device(layers: Sequence[Sequence[Places]], device: torch.device) -> list[list[Places]]:
    """The same places on a device: one copy for all of them."""
    indices = [index for places in layers for place in places for index in place.indices]
    there = iter(torch.cat(indices).to(device).split([len(index) for index in indices]))
    return [[Places(place.rows, *islice(there, len(place.indices))) for place in places] for places in layers]
