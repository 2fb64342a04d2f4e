"""How near one image is to another, as pure functions of torch tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_square(image: Tensor, reference: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared difference (B,) of images (B, C, H, W).

    Args:
        weight: (B, 1, H, W), what each pixel counts; an image whose weights are all zero gives nan.
    """
    square = (image.double() - reference.double()).square().mean(1, keepdim=True)
    if weight is None:
        return square.flatten(1).mean(1)
    weight = weight.double().expand_as(square)
    return (square * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)


def psnr(image: Tensor, reference: Tensor, weight: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio (B,) in dB of images (B, C, H, W) in 0..1; equal images give infinity.

    Args:
        weight: (B, 1, H, W), 1 where pixels count and 0 where not, or anything between.
    """
    return -10 * mean_square(image, reference, weight).log10()


def mean_psnr(image: Tensor, reference: Tensor, weight: Tensor | None = None, most: float = 60.0) -> float:
    """Mean over a batch of the PSNR in dB, each at most `most`, so that an equal image is not everything.

    Images without any weight are left out.
    """
    values = psnr(image, reference, weight)
    values = values[~values.isnan()].clamp(max=most)
    return float(values.mean()) if len(values) else float("nan")


def dilate(mask: Tensor, pixels: int) -> Tensor:
    """A mask (B, 1, H, W) grown by some pixels in all directions (a square neighbourhood)."""
    return F.max_pool2d(mask.float(), 2 * pixels + 1, stride=1, padding=pixels) if pixels else mask.float()


def erode(mask: Tensor, pixels: int) -> Tensor:
    """A mask (B, 1, H, W) shrunk by some pixels; what lies at the image's border stays."""
    return 1 - dilate(1 - mask.float(), pixels)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (B,) of masks (B, ...) of 0 and 1; two empty masks give nan."""
    a, b = a.flatten(1) > 0.5, b.flatten(1) > 0.5
    return (a & b).sum(1) / (a | b).sum(1).to(torch.float64)
