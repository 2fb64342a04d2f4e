"""A picture and what an editor makes of it: moved, scaled, and with a box put on it, drawn exactly."""

from __future__ import annotations

import torch

SIZE = (240, 320)


def drawn(size=SIZE, scale=(1.0, 1.0), shift=(0.0, 0.0), seed=0):
    """(H, W, 3) in 0..1: blobs of all sizes and colours, moved and scaled exactly, without any resampling.

    Args:
        scale, shift: what lies p pixels from the middle of the photograph is drawn at scale * p + shift pixels.
    """
    rng = torch.Generator().manual_seed(seed)
    middle, colour = 1.4 * torch.rand(2, 150, 1, generator=rng) - 0.7, torch.rand(150, 3, generator=rng) - 0.5
    width = 0.01 * 10 ** torch.rand(150, 1, generator=rng)
    rows, columns = (
        (((torch.arange(side) + 0.5 - side / 2 - by) / times / side - at) * side / size[0] / width).square()
        for side, times, by, at in zip(size, scale, shift, middle, strict=True)
    )
    blobs = torch.einsum("nh,nw,nc->hwc", (-rows / 2).exp(), (-columns / 2).exp(), colour)
    return 0.2 + 0.6 * (3 * blobs).sigmoid()


def put_box(picture, colour=(0.9, 0.1, 0.1)):
    edited = picture.clone()
    edited[90:150, 100:170] = torch.tensor(colour)
    return edited


BOX = torch.zeros(SIZE, dtype=torch.bool)
BOX[90:150, 100:170] = True
