"""A photograph of any size: the part around a mask at the size that a model draws best, and the edit put back.

What is fitted is a box of the photograph with the fitted picture's proportions. Where no such box lies inside the
photograph it reaches over the border; there it shows the border's pixels again, which the way back leaves out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...host.models import CELL
from .boxes import Box, FittedSize, bounds, fitted_size, of_shape, with_context
from .cells import check_aspect, shares
from .composite import FULL, put_on, soft_edge

_CELLS = 16
"""Pixels: an editor may round a picture's sides to the cells of its latent, which are at most as large."""


@dataclass(frozen=True, eq=False)
class FittedPhoto:
    """A photograph and what of it was fitted: all that is needed to put an edit back.

    Attributes:
        photo: (B, H, W, C), the very tensor that was given.
        box: what was fitted.
        size: (h, w) of the fitted picture.
        mask: (M, rows, columns) float in 0..1, of the box's part on the photograph; None: everything may change.
    """

    photo: Tensor
    box: Box
    size: tuple[int, int]
    mask: Tensor | None

    @property
    def part(self) -> Box:
        """The box's part on the photograph."""
        return self.box.inside(_size(self.photo))


@dataclass(frozen=True, eq=False)
class Pasted:
    """An edit on its photograph.

    Attributes:
        image: (B, H, W, C).
        outside: count of pixels that differ from the photograph where the mask and its soft edge are 0.
        cut: what may change reaches an edge of the box inside of the photograph, where the edit ends abruptly.
    """

    image: Tensor
    outside: int
    cut: bool


def fit(photo: Tensor, mask: Tensor | None, wanted: FittedSize) -> tuple[Tensor, Tensor, FittedPhoto]:
    """Bring the part of a photograph around a mask to the size that a model draws best.

    Args:
        photo: (B, H, W, C) in 0..1.
        mask: (M, h, w) or (h, w) in 0..1, M = 1 or B, or any M where B is 1; of any size, but of the photograph's
            shape. Shares that are 0 in 8 bits count as none. None, or empty throughout: the whole picture. Several
            masks have one box, around them all.
        wanted: the size.

    Returns:
        The picture (max(B, M), h, w, C); the mask of the same size (M, h, w) float in 0..1, 1 everywhere without a
        mask; and what `paste` takes.

    Raises:
        ValueError: a picture or mask of another shape, with NaN, some masks empty and others not, or batches that
            do not fit.
    """
    if photo.ndim != 4 or 0 in photo.shape:
        raise ValueError(f"Connect a picture of shape (B, H, W, C) to Fit Photo, not {tuple(photo.shape)}.")
    size = _size(photo)
    chosen = None if mask is None else _on_photo(mask, photo)
    region = Box(0, 0, *size)
    if chosen is not None and not wanted.whole:
        region = with_context(bounds(chosen > 1 - FULL), wanted, size)
    target = fitted_size(region, wanted.side, wanted.multiple)
    box = of_shape(region, target, size)
    part = box.inside(size)
    pixels = part.of(photo).float()
    if not torch.isfinite(pixels).all():
        raise ValueError("Connect another picture to Fit Photo: this one holds NaN or infinite values.")
    picture = resampled(_padded(pixels, box, part, "replicate"), target).to(photo.dtype)
    if chosen is None:
        return picture, torch.ones(1, *target), FittedPhoto(photo, box, target, None)
    kept = F.threshold(part.of(chosen), 1 - FULL, 0)
    shown = resampled(_padded(kept[..., None], box, part, "constant"), target, "bilinear")[..., 0]
    if len(photo) == 1 < len(kept):
        picture = picture.repeat(len(kept), 1, 1, 1)
    return picture, shown, FittedPhoto(photo, box, target, kept)


def paste(fitted: FittedPhoto, edited: Tensor, feather: int, mask: Tensor | None = None) -> Pasted:
    """Put an edited picture back into its photograph.

    Args:
        edited: (1 or B, h, w, C) in 0..1: of the fitted size, or of another size of its shape.
        feather: pixels of the fitted picture over which the edit fades out around the mask.
        mask: what has changed, in place of the mask that was fitted: (M, h, w) in 0..1 of the fitted picture's
            shape, or of the photograph's size.

    Returns:
        The photograph, bit for bit where the mask and its soft edge are 0.

    Raises:
        ValueError: an edited picture or mask of another shape or with NaN, a mask that selects nothing, or batches
            that do not fit.
    """
    _check_edited(fitted, edited)
    part, box = fitted.part, fitted.box
    weight = _weight(fitted, feather, mask)
    pixels = part.seen_from(box).of(resampled(edited.float(), (box.height, box.width)))
    image = put_on(fitted.photo, pixels, weight, (part.top, part.left))
    changed = (image != fitted.photo).any(-1)
    part.of(changed).logical_and_((weight == 0).to(changed.device))
    return Pasted(image, int(changed.count_nonzero()), _is_cut(fitted, weight))


def black_under_mask(fitted: FittedPhoto) -> bool:
    """Whether the photograph is exactly black under its mask, and mostly not around it.

    Pictures whose masks ComfyUI's front ends 1.47.3 to 1.47.11 saved are so (ComfyUI_frontend#13713).
    """
    if fitted.mask is None:
        return False
    black = (fitted.part.of(fitted.photo)[..., :3] == 0).all(-1).cpu()
    batch = max(len(black), len(fitted.mask))
    black, mask = (x.expand(batch, -1, -1) for x in (black, fitted.mask))
    under, around = mask >= FULL, mask == 0
    lost = under.flatten(1).any(1) & ~(under & ~black).flatten(1).any(1)
    bright = 2 * (around & ~black).flatten(1).sum(1) > around.flatten(1).sum(1)
    return bool((lost & bright).any())


def resampled(pixels: Tensor, size: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """(B, H, W, C) float in 0..1 at another size, by a filter as wide as a pixel of the coarser size."""
    if _size(pixels) == size:
        return pixels
    found = F.interpolate(pixels.movedim(-1, 1), size, mode=mode, antialias=True)
    return found.movedim(1, -1).clamp(0, 1)


def _size(pixels: Tensor) -> tuple[int, int]:
    """(H, W) of (N, H, W, ...)."""
    return pixels.shape[1], pixels.shape[2]


def _on_photo(mask: Tensor, photo: Tensor) -> Tensor | None:
    """A mask as (M, H, W) of the photograph's size; None if it is empty throughout."""
    pixels = shares(mask, "mask")
    empty = (pixels.flatten(1).amax(1) <= 1 - FULL).tolist()
    if all(empty):
        return None
    if any(empty):
        raise ValueError(
            f"Paint mask {empty.index(True) + 1} of {len(empty)} too, or take it out of the batch: it is empty, and "
            "only where all masks are is the whole picture meant."
        )
    if len(photo) > 1 and len(pixels) not in (1, len(photo)):
        raise ValueError(
            f"Give Fit Photo one mask, or one per picture: the mask holds {len(pixels)}, and there are {len(photo)} "
            "pictures."
        )
    return _of_size(pixels, _size(photo))


def _of_size(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask (M, h, w) in 0..1 at the size of its picture, whose shape it must have."""
    if _size(mask) == size:
        return mask
    check_aspect(mask, (size[0] // CELL, size[1] // CELL), "mask")
    return resampled(mask[..., None], size, "bilinear")[..., 0]


def _padded(pixels: Tensor, box: Box, part: Box, mode: str) -> Tensor:
    """(B, h, w, C) of a box's part on the photograph, with what lies beyond the border."""
    top, left = part.top - box.top, part.left - box.left
    sides = (left, box.width - part.width - left, top, box.height - part.height - top)
    return F.pad(pixels.movedim(-1, 1), sides, mode=mode).movedim(1, -1) if any(sides) else pixels


def _check_edited(fitted: FittedPhoto, edited: Tensor) -> None:
    (h, w), shape = fitted.size, tuple(edited.shape)
    if edited.ndim != 4 or 0 in shape:
        raise ValueError(f"Connect a picture of shape (B, H, W, C) to Paste into Photo, not {shape}.")
    height, width = _size(edited)
    if abs(height - width * h / w) >= _CELLS and abs(width - height * w / h) >= _CELLS:
        raise ValueError(
            f"Connect the edit of the picture that Fit Photo gave, {w}x{h}, or one of the same shape: this one is "
            f"{width}x{height}, and stretching it would distort it. If the editor cuts to sizes of its own, set "
            "Fit Photo's size and multiple to them."
        )
    if not torch.isfinite(edited).all():
        raise ValueError(
            "Start ComfyUI with --fp32-vae, or load another VAE: the edited picture holds NaN or infinite values. Most "
            "often a half-precision VAE makes them."
        )


def _weight(fitted: FittedPhoto, feather: int, mask: Tensor | None) -> Tensor:
    """How much of the edit each pixel of the box's part shows, (M, rows, columns) in 0..1."""
    part, box = fitted.part, fitted.box
    reach = round(feather * box.height / fitted.size[0])
    if mask is None:
        return torch.ones(1, part.height, part.width) if fitted.mask is None else soft_edge(fitted.mask, reach)
    chosen = F.threshold(shares(mask, "mask"), 1 - FULL, 0)
    if not chosen.flatten(1).any(1).all():
        raise ValueError(
            "Connect a mask of what has changed to Paste into Photo, or none, for Fit Photo's own: this one (or one "
            "of its batch) selects nothing, so nothing of the edit would be seen."
        )
    if _size(chosen) == _size(fitted.photo) != fitted.size:
        return soft_edge(part.of(chosen), reach)
    weight = soft_edge(_of_size(chosen, fitted.size), feather)
    return part.seen_from(box).of(resampled(weight[..., None], (box.height, box.width), "bilinear"))[..., 0]


def _is_cut(fitted: FittedPhoto, weight: Tensor) -> bool:
    """See `Pasted.cut`."""
    part, (height, width) = fitted.part, _size(fitted.photo)
    edges = (
        (part.top > 0, weight[:, 0]),
        (part.top + part.height < height, weight[:, -1]),
        (part.left > 0, weight[:, :, 0]),
        (part.left + part.width < width, weight[:, :, -1]),
    )
    return any(inner and bool(edge.any()) for inner, edge in edges)
