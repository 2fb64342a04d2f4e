"""Which part of a photograph is shown at which size: boxes of the proportions of a picture that a model draws."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

LONGEST = 2
"""A fitted picture's longer side is at most so many times the side of the square of its area."""


@dataclass(frozen=True)
class Box:
    """A rectangle on a photograph, in pixels; it may reach over the border."""

    top: int
    left: int
    height: int
    width: int

    def inside(self, size: tuple[int, int]) -> Box:
        """The part that lies on a photograph of (H, W)."""
        top, left = max(self.top, 0), max(self.left, 0)
        bottom, right = min(self.top + self.height, size[0]), min(self.left + self.width, size[1])
        return Box(top, left, bottom - top, right - left)

    def seen_from(self, other: Box) -> Box:
        """The same rectangle in the coordinates of another one."""
        return Box(self.top - other.top, self.left - other.left, self.height, self.width)

    def of(self, pixels: Tensor) -> Tensor:
        """A view of the box in (N, H, W, ...), in which it lies."""
        return pixels[:, self.top : self.top + self.height, self.left : self.left + self.width]


@dataclass(frozen=True)
class FittedSize:
    """How a photograph is fitted.

    Attributes:
        side: pixels, of the square that has the fitted picture's area.
        multiple: pixels; both sides of the fitted picture are multiples of it.
        context: what is shown around the mask on each side, as a share of the mask's own size.
        zoom: about how many times a small part is enlarged at most; more of its surroundings is shown instead.
        whole: the whole photograph, wherever the mask lies.
    """

    side: int
    multiple: int
    context: float = 0.5
    zoom: float = 2.0
    whole: bool = False


def bounds(chosen: Tensor) -> Box:
    """The least box around all that masks (M, H, W) bool select, of which one selects something."""
    chosen = chosen.any(0)
    rows, columns = (chosen.any(dim).nonzero()[:, 0] for dim in (1, 0))
    top, left = int(rows[0]), int(columns[0])
    return Box(top, left, int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left)


def with_context(box: Box, wanted: FittedSize, size: tuple[int, int]) -> Box:
    """A box with its surroundings, within a photograph of (H, W).

    The size of which `context` is a share is the square root of the box's area, as for Edit Masks' dilation.
    """
    margin = round(wanted.context * math.sqrt(box.height * box.width))
    least = math.ceil(wanted.side / wanted.zoom)
    height, width = (min(max(side + 2 * margin, least), whole) for side, whole in zip(_sides(box), size, strict=True))
    return _about(box, height, width, size)


def fitted_size(region: Box, side: int, multiple: int) -> tuple[int, int]:
    """(h, w) of a picture that shows a region: as near as can be to its proportions and to the area of side².

    The nearest is where log(shown area / region's area) + |log(h w / side²)| / 2 is least: what is shown beside the
    region, which may be beyond the photograph's border, counts twice as much as a size that the model knows less.
    """
    area, least = side * side, max(1, round(side / LONGEST / multiple)) * multiple
    most = max(least, LONGEST * side)
    sizes: set[tuple[int, int]] = set()
    for h in range(least, most + 1, multiple):
        near = max(least, area // h // multiple * multiple)
        sizes |= {(h, w) for w in (near - multiple, near, near + multiple) if least <= w <= most}

    def cost(size: tuple[int, int]) -> tuple[float, tuple[int, int]]:
        scale = min(size[0] / region.height, size[1] / region.width)
        shown = size[0] * size[1] / (scale * scale * region.height * region.width)
        return round(math.log(shown) + abs(math.log(size[0] * size[1] / area)) / 2, 9), size

    return min(sizes, key=cost)


def of_shape(region: Box, target: tuple[int, int], size: tuple[int, int]) -> Box:
    """The least box around a region with the proportions of a picture (h, w), to less than a pixel.

    It lies on the photograph of (H, W) where it can, and else reaches evenly over two opposite borders.
    """
    (h, w), (height, width) = target, _sides(region)
    if height * w >= width * h:
        width = -(-height * w // h)
    else:
        height = -(-width * h // w)
    return _about(region, height, width, size)


def _sides(box: Box) -> tuple[int, int]:
    return box.height, box.width


def _about(box: Box, height: int, width: int, size: tuple[int, int]) -> Box:
    """A larger box with another in its middle, or as near to that as the photograph's borders let it."""
    top, left = _begin(box.top, box.height, height, size[0]), _begin(box.left, box.width, width, size[1])
    return Box(top, left, height, width)


def _begin(first: int, length: int, wanted: int, whole: int) -> int:
    """Where `wanted` pixels begin that have `length` others, from `first` on, in their middle."""
    if wanted >= whole:
        return -((wanted - whole) // 2)
    return min(max(first - (wanted - length) // 2, 0), whole - wanted)
