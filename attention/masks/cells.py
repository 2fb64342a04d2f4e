"""Masks: 1 selects. Pure functions on (M, H, W) float or bool tensors, M = 1 or the batch."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

RESIZE_RULES = ("nearest", "majority", "any")
"""How `resize` may decide whether a cell is selected."""
_ROUNDING = 0.01
"""How far other nodes' filters may take a mask out of 0..1."""


def as_mask(mask: Tensor, name: str) -> Tensor:
    """A MASK socket's tensor as (M, H, W) bool on the CPU: selected where it is above a half.

    A fourth dimension of size 1, which some segmentation nodes leave in second or last place, is dropped.

    Raises:
        ValueError: of another shape, without pixels, or with NaN.
    """
    return _pixels(mask, name) > 0.5


def shares(mask: Tensor, name: str) -> Tensor:
    """A MASK socket's tensor as (M, H, W) float32 in 0..1 on the CPU, as soft as it came.

    Raises:
        ValueError: of another shape, without pixels, with NaN, or with values outside of 0..1.
    """
    pixels = _pixels(mask, name)
    low, high = (float(x) for x in pixels.aminmax())
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise ValueError(
            f"Bring the {name} to 0..1: its values go from {low:g} to {high:g}. Divide one of 0..255 by 255, or put "
            "Threshold Mask behind it."
        )
    return pixels.clamp(0, 1) if low < 0 or high > 1 else pixels


def selecting(mask: Tensor, name: str, cure: str) -> Tensor:
    """A MASK socket's tensor as `as_mask` has it, of which each mask selects something.

    Args:
        cure: what to do about an empty mask, as the beginning of a sentence.

    Raises:
        ValueError: as `as_mask`; or one selects nothing, because it is empty or because it is faint.
    """
    pixels = _pixels(mask, name)
    strongest = pixels.flatten(1).amax(1)
    if bool((strongest > 0.5).all()):
        return pixels > 0.5
    faint = float(strongest[strongest <= 0.5].max())
    if faint > 0:
        raise ValueError(
            f"Paint the {name} at full strength, or put a node behind it that makes it black and white (such as "
            f"Threshold Mask): it selects nothing, for its strongest pixel is {faint:.2g}, and one counts above 0.5."
        )
    raise ValueError(f"{cure}: the {name} selects nothing. An image without transparency gives an empty mask.")


def _pixels(mask: Tensor, name: str) -> Tensor:
    """A MASK socket's tensor as (M, H, W) float32 on the CPU, of which every pixel is a number."""
    if mask.ndim == 2:
        mask = mask[None]
    if mask.ndim == 4 and 1 in (mask.shape[1], mask.shape[3]):
        mask = mask[:, 0] if mask.shape[1] == 1 else mask[..., 0]
    if mask.ndim != 3 or 0 in mask.shape:
        raise ValueError(f"The {name} must be a mask of shape (M, H, W), not {tuple(mask.shape)}.")
    pixels = mask.detach().float().cpu()
    wrong = int(pixels.isnan().count_nonzero())  # a sum of bools is 20 times slower, felt with large masks
    if wrong:
        raise ValueError(
            f"Connect another mask, or mend the node that makes it: of the {name}, {wrong} of {pixels.numel()} pixels "
            "are NaN, which is no number."
        )
    return pixels


def check_aspect(mask: Tensor, size: tuple[int, int], name: str) -> None:
    """Refuse a mask of another picture: of any size, but of the shape of an image that the latent can be from.

    An encoder rounds an image's sides down to multiples of 8, and a map's or a small mask's sides are rounded too,
    so each side may be off by less than one of its own cells.

    Args:
        mask: (M, H, W).
        size: (h, w) of the latent.

    Raises:
        ValueError: width and height are in another proportion.
    """
    (height, width), (h, w) = mask.shape[-2:], size
    if height * w >= (h + 1) * (width + 1) or width * h >= (w + 1) * (height + 1):
        raise ValueError(
            f"The {name} is {width}x{height}, but the image is about {8 * w}x{8 * h}: it belongs to a picture of "
            "another shape. Crop or pad the mask as the image was, or draw it on the image that is encoded."
        )


def resize(mask: Tensor, size: tuple[int, int], rule: str = "nearest") -> Tensor:
    """Resize to a layer's feature map, never losing a mask altogether.

    Args:
        mask: (M, H, W) bool.
        size: (h, w).
        rule: "nearest" as the papers' code; "majority", a cell is selected when at least half of it is; "any",
            a cell is selected when any part of it is.

    Returns:
        (M, h, w) bool. An item that the rule would empty although it was not empty is resized with "any".
    """
    if rule == "nearest":
        result = _nearest(mask, size)
    elif rule == "majority":
        result = F.adaptive_avg_pool2d(mask[:, None].float(), size)[:, 0] >= 0.5
    elif rule == "any":
        return _touched(mask, size)
    else:
        raise ValueError(f"Unknown rule {rule!r} for resizing a mask; use nearest, majority or any.")
    empty = ~result.flatten(1).any(1)
    if not bool(empty.any()):
        return result
    vanished = empty & mask.flatten(1).any(1)
    return torch.where(vanished[:, None, None], _touched(mask, size), result)


def _nearest(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """The pixels that nearest interpolation takes, picked out: a mask of any size costs no more than the map."""
    rows, columns = (
        F.interpolate(torch.arange(side, dtype=torch.float64)[None, None], wanted, mode="nearest")[0, 0].long()
        for side, wanted in zip(mask.shape[-2:], size, strict=True)
    )
    return mask[:, rows.to(mask.device)][:, :, columns.to(mask.device)]


def _touched(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Cells (M, h, w) of which any part is selected."""
    (height, width), (h, w) = mask.shape[-2:], size
    if height % h == 0 and width % w == 0:
        return mask.unflatten(2, (w, width // w)).any(-1).unflatten(1, (h, height // h)).any(2)
    # Only a mask smaller than the map needs enlarging; adaptive pooling then repeats cells.
    return F.adaptive_max_pool2d(mask[:, None].float(), size)[:, 0] > 0


def dilate(mask: Tensor, radius: int) -> Tensor:
    """Grow (M, H, W) bool by a square of 2 * radius + 1 pixels; a negative radius shrinks it.

    The square is a row and a column, and whether a stretch of pixels holds a selected one is told by two of its running
    counts: the time does not depend on the radius.
    """
    if radius == 0:
        return mask
    if radius < 0:
        return ~dilate(~mask, -radius)
    return _spread(_spread(mask, radius, 1), radius, 2)


def _spread(mask: Tensor, radius: int, dim: int) -> Tensor:
    """Select what lies within so many pixels of a selected one along one dimension."""
    length = mask.shape[dim]
    counts = F.pad(mask.cumsum(dim, dtype=torch.int32), (1, 0) if dim == 2 else (0, 0, 1, 0))
    here = torch.arange(length, device=mask.device)
    ends, starts = (here + radius + 1).clamp(max=length), (here - radius).clamp(min=0)
    return counts.index_select(dim, ends) > counts.index_select(dim, starts)


def distance(mask: Tensor) -> Tensor:
    """Pixels, by the larger of the two coordinates, to the nearest selected one of (M, H, W) bool; int32.

    Row after row, down and up again, so that the time does not depend on how far it is; where nothing is selected it
    is more than the sides together.
    """
    height, width = mask.shape[-2:]
    here = torch.arange(width, dtype=torch.int32, device=mask.device)
    far = height + 2 * width
    left = here - torch.where(mask, here, -far).cummax(2).values
    right = torch.where(mask, here, far + width).flip(2).cummin(2).values.flip(2) - here
    rows = torch.minimum(left, right)
    for order in (range(height), range(height - 1, -1, -1)):
        for one, other in pairwise(order):
            row, near = rows[:, other], rows[:, one] + 1
            for to, of in ((row, near), (row[:, 1:], near[:, :-1]), (row[:, :-1], near[:, 1:])):
                torch.minimum(to, of, out=to)
    return rows


def grow(mask: Tensor, share: float) -> Tensor:
    """Dilate each of (M, H, W) bool by CPAM's kernel, k = sqrt(area) * share (official code; odd, hence symmetric)."""
    return torch.cat([dilate(item[None], int(float(item.sum()) ** 0.5 * share) // 2) for item in mask])


def for_batch(mask: Tensor, batch: int, name: str) -> Tensor:
    """A mask for each image of a batch: (M, ...) to (batch, ...).

    Raises:
        ValueError: M is neither 1 nor the batch.
    """
    if mask.shape[0] not in (1, batch):
        raise ValueError(
            f"The {name} holds {mask.shape[0]} masks, but there are {batch} images. Give one mask, or one per image."
        )
    return mask.expand(batch, *mask.shape[1:])
