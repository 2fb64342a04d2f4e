"""The photograph's very pixels outside a mask: the one thing that no latent can give back."""

from __future__ import annotations

import torch
from torch import Tensor

from ...host.models import CELL
from .cells import check_aspect, distance, for_batch, resize

FULL = 1 - 1 / 510
"""From here on a mask's value is 1 in 8 bits."""


def composite(original: Tensor, edited: Tensor, mask: Tensor, feather: int) -> Tensor:
    """The edited image inside a mask, the original one elsewhere, faded into each other outside the mask.

    Args:
        original: (1 or B, H, W, C) in 0..1.
        edited: (1 or B, H, W, C) in 0..1; also H and W rounded down to multiples of 8, as the autoencoder leaves
            them: it lies where the host's encoder cropped it from.
        mask: (1 or B, h, w) bool, what has changed; of any size, but of the original's shape.
        feather: pixels around the mask over which the edited image fades out.

    Returns:
        (B, H, W, C), equal to the original bit for bit further than `feather` pixels from the mask, and to the
        edited image inside the mask.

    Raises:
        ValueError: a mask that selects nothing, or sizes or batches that do not fit.
    """
    empty = (~mask.flatten(1).any(1)).nonzero()[:, 0].tolist()
    if empty:
        which = f"mask {empty[0] + 1} of {len(mask)}" if len(mask) > 1 else "mask"
        raise ValueError(
            f"Connect a mask of what has changed: the {which} of Composite in Pixels selects no pixel (a pixel counts "
            "above 0.5), so nothing of the edited image would be seen."
        )
    top, left = _offset(original, edited)
    on_edited = mask.shape[1:] == edited.shape[1:3]
    weight = _weight(mask, tuple((edited if on_edited else original).shape[1:3]), feather)
    if not on_edited:
        weight = weight[:, top : top + edited.shape[1], left : left + edited.shape[2]]
    return put_on(original[..., : edited.shape[-1]], edited, weight, (top, left))


def put_on(original: Tensor, edited: Tensor, weight: Tensor, corner: tuple[int, int]) -> Tensor:
    """A copy of an image with another one laid over a part of it.

    Args:
        original: (1 or B, H, W, C) in 0..1.
        edited: (1 or B, h, w, c) in 0..1, finite; channels that it has not stay the original's.
        weight: (1 or B, h, w) in 0..1, how much of the edited image each pixel shows.
        corner: row and column of the original at which it lies.

    Returns:
        (B, H, W, C), equal to the original bit for bit where the weight is 0, and to the edited image where it is 1.

    Raises:
        ValueError: batches that do not fit.
    """
    batch = max(len(original), len(edited), len(weight))
    original, edited = (_batched(x, batch, name) for x, name in ((original, "original"), (edited, "edited image")))
    channels, (top, left) = min(original.shape[-1], edited.shape[-1]), corner
    # Memory of its own for every image: one that was expanded to the batch has the same for all.
    result = original.clone(memory_format=torch.contiguous_format)
    part = result[:, top : top + edited.shape[1], left : left + edited.shape[2], :channels]
    weight = for_batch(weight, batch, "mask")[..., None]
    part.copy_(torch.lerp(part, edited[..., :channels].to(result), weight.to(result)))
    return result


def soft_edge(mask: Tensor, feather: int) -> Tensor:
    """How much of an edited image each pixel shows: all inside the mask, less with every pixel away from it.

    Args:
        mask: (M, H, W) bool, or float in 0..1. What is selected in part keeps its share, and nothing fades out
            around it.
        feather: pixels over which it falls, by 1 / (feather + 1) per pixel.

    Returns:
        (M, H, W) float32 in 0..1; 0 further than `feather` pixels from the mask.
    """
    if mask.is_floating_point() and feather == 0:
        return mask
    whole = mask >= FULL if mask.is_floating_point() else mask
    weight = (feather + 1 - distance(whole)).clamp(min=0) / (feather + 1)
    return torch.maximum(weight, mask) if mask.is_floating_point() else weight


def _offset(original: Tensor, edited: Tensor) -> tuple[int, int]:
    """Where the edited image lies on the original: the host's encoder crops around the middle."""
    sides = [(int(o), int(e)) for o, e in zip(original.shape[1:3], edited.shape[1:3], strict=True)]
    if any(e not in (o, o // CELL * CELL) for o, e in sides):
        (height, given_height), (width, given_width) = sides
        raise ValueError(
            f"The edited image is {given_width}x{given_height}, but the original is {width}x{height}; they may differ "
            "by what VAE Encode cuts off to reach multiples of 8. Connect the very image that was encoded, or scale "
            "one of them to the other's size."
        )
    top, left = ((o - e) // 2 for o, e in sides)
    return top, left


def _batched(images: Tensor, batch: int, name: str) -> Tensor:
    if len(images) not in (1, batch):
        raise ValueError(
            f"The {name} is a batch of {len(images)} where {batch} are needed. Give one image, or as many as there are."
        )
    return images.expand(batch, -1, -1, -1)


def _weight(mask: Tensor, size: tuple[int, ...], feather: int) -> Tensor:
    """`soft_edge` of a mask of any size, on an image of a size."""
    if tuple(mask.shape[1:]) != size:
        check_aspect(mask, (size[0] // CELL, size[1] // CELL), "mask")
        mask = resize(mask, (size[0], size[1]), "any")
    return soft_edge(mask, feather)
