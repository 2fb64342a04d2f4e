"""Maps of one layer or of several at one size: another node may change a layer's size within a run (Deep Shrink)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def resize_maps(maps: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """Maps (B, h, w) to another size, with a mode of torch's interpolate."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps[:, None], size=size, mode=mode)[:, 0]


def alike(maps: Sequence[Tensor], mode: str = "nearest") -> list[Tensor]:
    """Maps (B, h, w) of several sizes, all at the size of the largest."""
    size = max(((m.shape[-2], m.shape[-1]) for m in maps), key=lambda shape: shape[0] * shape[1])
    return [resize_maps(m, size, mode) for m in maps]


def add_tokens(
    total: Tensor, shape: tuple[int, int], values: Tensor, other: tuple[int, int], own: bool
) -> tuple[Tensor, tuple[int, int]]:
    """The sum of maps (B, N, T) or, with `own`, (B, N, N), at the larger of their two sizes, and that size.

    Args:
        total, shape: what is added to, in place where it has its size already; (h, w), h * w = N.
        values, other: what is added, and its size.
    """
    if shape != other:
        larger = max(shape, other, key=lambda size: size[0] * size[1])
        total, values = (_tokens(x, size, larger, own) for x, size in ((total, shape), (values, other)))
        shape = larger
    return total.add_(values), shape


def _tokens(values: Tensor, shape: tuple[int, int], size: tuple[int, int], own: bool) -> Tensor:
    """Maps of image tokens at another size; with `own` on both sides, and each row's sum stays what it was."""
    if shape == size:
        return values

    def along_queries(x: Tensor) -> Tensor:
        grid = x.transpose(1, 2).unflatten(2, shape)
        return F.interpolate(grid, size=size, mode="bilinear").flatten(2).transpose(1, 2).contiguous()

    found = along_queries(values)
    if not own:
        return found
    whole = found.sum(2, keepdim=True)
    found = along_queries(found.transpose(1, 2)).transpose(1, 2).contiguous()
    return found * (whole / found.sum(2, keepdim=True))
