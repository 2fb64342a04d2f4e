"""Read a drawing of the demo world from its pixels: the ground's colour, and each object's shape and colour.

Nothing but the image goes in, wherever something was drawn, so that a picture made by the model, or an edited
one, is judged by what it shows. What cannot be named is reported with NOTHING in the place of its name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import scipy.ndimage
import torch
from bundle import world
from bundle.shapes import shape_distance
from numpy.typing import NDArray

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]
ndimage: Any = scipy.ndimage  # without types: the ones that can be inferred are wrong

SMALLEST = 0.01
"""Share of the image below which a spot is no object: a sixth of the world's smallest object."""
DIFFERS = 20.0
"""Distance from the ground (Lab units, lightness at a quarter) at which a pixel can belong to an object.
Light, shadow and texture stay below it, even on pink that is lit until it clips; the darkest edge of any
object is more than 30 from any ground."""
_LIGHTNESS = 0.25
_GROUND_LIMIT = 22.0
_CELLS = 56
"""Templates are compared on a grid of this many cells a side."""
_EXTENT = 1.45
"""Half the side of that grid, in units of the root of the object's area."""
_ANGLES = np.linspace(-0.35, 0.35, 9)
_SCALES = (0.94, 1.0, 1.06)


@dataclass(frozen=True)
class Found:
    """Something that was drawn."""

    shape: int
    """Index into world.SHAPES, or NOTHING when it looks like none of them."""
    colour: int
    """Index into world.COLOURS."""
    mask: Mask
    """(H, W), true inside."""
    centre: tuple[float, float]
    """x, y of the centre of gravity in 0..1."""
    fit: float
    """Intersection over union with the best template, 0..1."""


@dataclass(frozen=True)
class Reading:
    """What an image shows."""

    background: int
    """Index into world.BACKGROUNDS, or NOTHING when it is like none of them."""
    objects: list[Found]
    """From the largest to the smallest."""


def lab(rgb: Array) -> Array:
    """CIE Lab (..., 3) of sRGB values (..., 3) in 0..1."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ (to_xyz.T / np.array([0.9505, 1.0, 1.089]))
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def _weigh(colours: Array) -> Array:
    """Lab with less weight on lightness, which light, shadow and texture change and paint does not."""
    return colours * np.array([_LIGHTNESS, 1.0, 1.0])


def _basis(height: int, width: int) -> Array:
    """Terms (H*W, 6) of a quadratic surface over the image."""
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], -1).reshape(-1, 6)


def _frame(height: int, width: int) -> Mask:
    """The image's border (H, W), where hardly an object reaches."""
    frame = np.ones((height, width), bool)
    dy, dx = max(1, height // 16), max(1, width // 16)
    frame[dy:-dy, dx:-dx] = False
    return frame


def _from_ground(colours: Array) -> tuple[Array, Mask]:
    """How far each pixel (H, W) of weighed Lab colours (H, W, 3) lies from the ground around it.

    The ground is a smooth surface through the pixels that are near it, starting from the border's median.
    Also returns which pixels are ground.
    """
    height, width = colours.shape[:2]
    flat, basis = colours.reshape(-1, 3), _basis(height, width)
    start = np.median(colours[_frame(height, width)], 0)
    distance = np.linalg.norm(flat - start, axis=-1)
    for _ in range(3):
        near = np.flatnonzero(distance < DIFFERS)[::3]
        if len(near) < 100:
            break
        surface = np.linalg.lstsq(basis[near], flat[near], rcond=None)[0]
        distance = np.linalg.norm(flat - basis @ surface, axis=-1)
    distance = distance.reshape(height, width)
    return distance, distance < DIFFERS


def _name_background(ground: Array) -> int:
    """The background colour nearest to a Lab colour (3,), or NOTHING."""
    # Light moves lightness by up to 17 units; gray, white and black differ in nothing else, by 38 and more.
    weights = np.array([0.6, 1.0, 1.0])
    distance = np.linalg.norm((_background_lab() - ground) * weights, axis=-1)
    return int(distance.argmin()) if distance.min() < _GROUND_LIMIT else world.NOTHING


@lru_cache(maxsize=1)
def _background_lab() -> Array:
    return lab(world.BACKGROUND_RGB.numpy().astype(np.float64))


@lru_cache(maxsize=1)
def _colour_directions() -> Array:
    rgb = world.COLOUR_RGB.numpy().astype(np.float64)
    return rgb / np.linalg.norm(rgb, axis=-1, keepdims=True)


def _name_colours(rgb: Array) -> NDArray[np.int64]:
    """The nearest object colour of sRGB values (..., 3).

    Stripes, bevel and light multiply a colour, so only its direction counts.
    """
    direction = rgb / np.maximum(np.linalg.norm(rgb, axis=-1, keepdims=True), 1e-6)
    return (direction @ _colour_directions().T).argmax(-1)


def _normalise(mask: Mask, scale: float = 1.0) -> Array:
    """A mask (H, W) moved to the middle and scaled to one area: (CELLS, CELLS) in 0..1."""
    area = mask.sum()
    y, x = ndimage.center_of_mass(mask)
    step = 2 * _EXTENT * math.sqrt(area) * scale / _CELLS
    middle = (_CELLS - 1) / 2
    # Smoothed like the grid's cells, otherwise a coarse grid sees single pixels.
    soft = ndimage.gaussian_filter(mask.astype(np.float32), max(0.3, 0.35 * step))
    offset = (y - middle * step, x - middle * step)
    return ndimage.affine_transform(soft, (step, step), offset, (_CELLS, _CELLS), order=1)


@lru_cache(maxsize=1)
def _templates() -> tuple[Array, NDArray[np.int64]]:
    """All shapes in all angles and scales: binary (N, CELLS*CELLS), and each one's shape index (N,)."""
    line = torch.linspace(-1.6, 1.6, 193)
    x, y = line[None, :].expand(193, 193), line[:, None].expand(193, 193)
    drawn, names = [], []
    for shape in range(len(world.SHAPES)):
        for angle in _ANGLES:
            cos, sin = math.cos(angle), math.sin(angle)
            inside = shape_distance(world.SHAPES[shape], x * cos + y * sin, y * cos - x * sin) < 0
            for scale in _SCALES:
                drawn.append(_normalise(inside.numpy(), scale).ravel() > 0.5)
                names.append(shape)
    return np.stack(drawn).astype(np.float32), np.array(names)


def _overlaps(candidate: Array) -> Array:
    """Intersection over union (N,) of one binary grid (CELLS*CELLS,) with every template."""
    templates = _templates()[0]
    both = templates @ candidate
    return both / (templates.sum(-1) + candidate.sum() - both)


@lru_cache(maxsize=1)
def likeness_limits() -> Array:
    """Per shape (6,): the overlap a drawing must exceed to be called that shape, 0..1.

    No other shape overlaps it as much, and at most a fifth of the joint area may differ.
    """
    templates, names = _templates()
    overlap = np.stack([_overlaps(template) for template in templates])
    others = np.where(names[:, None] == names, 0, overlap)
    return np.array([max(0.8, others[names == shape].max()) for shape in range(len(world.SHAPES))])


def name_shape(mask: Mask) -> tuple[int, float]:
    """The shape that a mask (H, W) is like, or NOTHING, and the intersection over union with its template."""
    overlap = _overlaps((_normalise(mask) > 0.5).ravel().astype(np.float32))
    best = int(overlap.argmax())
    shape, fit = int(_templates()[1][best]), float(overlap[best])
    return (shape if fit > likeness_limits()[shape] else world.NOTHING), fit


def _pieces(part: Mask, colours: NDArray[np.int64], smallest: float) -> list[Mask]:
    """A connected part, or its pieces of different colour when two objects touch."""
    # A rim mixes two colours into a third one, so thin strips do not count as another object.
    thin = max(1, min(part.shape) // 64)
    cores = {int(c): ndimage.binary_opening(part & (colours == c), iterations=thin) for c in np.unique(colours[part])}
    large = {c: core for c, core in cores.items() if core.sum() > smallest}
    if len(large) < 2:
        return [part]
    away = np.stack([ndimage.distance_transform_edt(~core) for core in large.values()])
    nearest = away.argmin(0)
    return [part & (nearest == i) for i in range(len(large))]


def _find(rgb: Array, distance: Array) -> list[Found]:
    """The objects of an image (H, W, 3), given the distance (H, W) from its ground."""
    smallest = SMALLEST * distance.size
    colours = _name_colours(rgb)
    objects = []
    labels, count = ndimage.label(distance > DIFFERS)
    for index in range(1, count + 1):
        part = labels == index
        if part.sum() < smallest:
            continue
        for piece in _pieces(part, colours, smallest):
            # A soft edge is cut half way between object and ground.
            typical = np.median(distance[piece])
            mask = piece & (distance > max(DIFFERS, typical / 2))
            parts, number = ndimage.label(mask)
            if number == 0:
                continue
            mask = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
            if mask.sum() >= smallest:
                objects.append(_describe(rgb, mask))
    return sorted(objects, key=lambda found: -int(found.mask.sum()))


def _describe(rgb: Array, mask: Mask) -> Found:
    """Name what a mask (H, W) of an image (H, W, 3) shows."""
    shape, fit = name_shape(mask)
    core = ndimage.binary_erosion(mask, iterations=max(1, min(mask.shape) // 128))
    colour = int(_name_colours(rgb[core if core.any() else mask].mean(0)))
    y, x = ndimage.center_of_mass(mask)
    return Found(shape, colour, mask, ((x + 0.5) / mask.shape[1], (y + 0.5) / mask.shape[0]), fit)


def _pixels(image: torch.Tensor | Array) -> Array:
    """An image (3, H, W) as an array (H, W, 3) in 0..1."""
    values = image.detach().float().cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
    return np.moveaxis(values.astype(np.float64), 0, -1).clip(0, 1)


def read(image: torch.Tensor | Array) -> Reading:
    """Read one image (3, H, W) in 0..1."""
    rgb = _pixels(image)
    colours = lab(rgb)
    distance, ground = _from_ground(_weigh(colours))
    background = _name_background(np.median(colours[ground], 0)) if ground.any() else world.NOTHING
    return Reading(background, _find(rgb, distance))


def read_all(images: torch.Tensor | Array) -> list[Reading]:
    """Read each image of a batch (B, 3, H, W) in 0..1."""
    return [read(image) for image in images]


def _region(mask: torch.Tensor | NDArray) -> Mask:
    """A mask (H, W) or (1, H, W), true above one half."""
    values = mask.detach().float().cpu().numpy() if isinstance(mask, torch.Tensor) else np.asarray(mask)
    return values.reshape(values.shape[-2:]) > 0.5


def inside(reading: Reading, mask: torch.Tensor | NDArray) -> Found | None:
    """The object of a reading that lies, by at least half of its pixels, in a region (H, W)."""
    region = _region(mask)
    candidates = [(int((found.mask & region).sum()), found) for found in reading.objects]
    candidates = [(shared, found) for shared, found in candidates if shared >= 0.5 * found.mask.sum()]
    return max(candidates, key=lambda pair: pair[0])[1] if candidates else None


def read_inside(image: torch.Tensor | Array, mask: torch.Tensor | NDArray) -> Found | None:
    """What is drawn inside a region (H, W) of an image (3, H, W), or None."""
    return inside(read(image), mask)


def ground_inside(image: torch.Tensor | Array, mask: torch.Tensor | NDArray) -> int:
    """The background colour that a region (H, W) of an image (3, H, W) shows by its median, or NOTHING."""
    colours = lab(_pixels(image))[_region(mask)]
    return _name_background(np.median(colours, 0)) if len(colours) else world.NOTHING


def colour_share(image: torch.Tensor | Array, mask: torch.Tensor | NDArray, colour: int) -> float:
    """Share 0..1 of a region's pixels (H, W) of an image (3, H, W) that come nearest to one of the object colours."""
    pixels = _pixels(image)[_region(mask)]
    return float((_name_colours(pixels) == colour).mean()) if len(pixels) else 0.0
