"""The demo world: rendered scenes whose every edit has a known true result.

A scene is one or two shaded objects (colour x shape) on a lit, textured background. Everything that makes
a scene look as it does lies in tensors, so the truth of an edit ("make the circle blue", "take it away")
is the same scene rendered again with one entry changed. Light, texture and surface pattern are not in the
caption: they are what an edit has to preserve.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .shapes import shape_distance

SIZE = 128
SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "yellow", "green", "blue", "purple")
BACKGROUNDS = ("gray", "white", "black", "pink", "teal")
NOTHING = -1
"""Index of an object that is not there."""
UNSAID = -1
"""Index of a colour or background that a caption leaves out."""
Thing = tuple[int, int]
"""Shape and colour index; the colour may be UNSAID."""

COLOUR_RGB = torch.tensor(
    [
        [0.82, 0.10, 0.10],
        [0.94, 0.85, 0.10],
        [0.12, 0.62, 0.18],
        [0.12, 0.28, 0.85],
        [0.52, 0.16, 0.70],
    ]
)
BACKGROUND_RGB = torch.tensor(
    [
        [0.50, 0.50, 0.50],
        [0.90, 0.90, 0.90],
        [0.10, 0.10, 0.10],
        [0.95, 0.68, 0.76],
        [0.15, 0.52, 0.54],
    ]
)
TEXTURE_GRIDS = (3, 6, 12)
"""Cells per side of the noise octaves that make a background's texture."""


@dataclass(frozen=True)
class Scenes:
    """A batch of B scenes with up to K=2 objects; lengths are in units of the image side."""

    shape: Tensor  # (B, K) int64, index into SHAPES or NOTHING
    colour: Tensor  # (B, K) int64, index into COLOURS
    centre: Tensor  # (B, K, 2) x, y in 0..1
    radius: Tensor  # (B, K)
    angle: Tensor  # (B, K) radians
    shade: Tensor  # (B, K, 3) colour jitter
    stripes: Tensor  # (B, K, 4) surface pattern: frequency, direction, phase, strength
    background: Tensor  # (B,) int64, index into BACKGROUNDS
    tint: Tensor  # (B, 3) background colour jitter
    light: Tensor  # (B, 3) gradient x, y and vignette strength
    textures: tuple[Tensor, ...]  # per octave (B, 1, G, G)

    def __len__(self) -> int:
        return self.shape.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Scenes:
        """The scenes of a slice or index tensor."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        textures = tuple(t[index] for t in values.pop("textures"))
        return Scenes(textures=textures, **{k: v[index] for k, v in values.items()})

    def to(self, device: torch.device | str) -> Scenes:
        """The same scenes on another device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        textures = tuple(t.to(device) for t in values.pop("textures"))
        return Scenes(textures=textures, **{k: v.to(device) for k, v in values.items()})

    def with_object(
        self, slot: int, shape: Tensor | None = None, colour: Tensor | None = None, centre: Tensor | None = None
    ) -> Scenes:
        """These scenes with the shape or colour (B,) or centre (B, 2) of the objects in one slot changed."""
        shapes, colours, centres = self.shape.clone(), self.colour.clone(), self.centre.clone()
        if shape is not None:
            shapes[:, slot] = shape
        if colour is not None:
            colours[:, slot] = colour
        if centre is not None:
            centres[:, slot] = centre
        return replace(self, shape=shapes, colour=colours, centre=centres)

    def without_object(self, slot: int) -> Scenes:
        """These scenes with the objects of one slot taken away."""
        return self.with_object(slot, shape=torch.full_like(self.shape[:, slot], NOTHING))

    def with_background(self, background: Tensor) -> Scenes:
        """These scenes on other backgrounds (B,), under the same light and texture."""
        return replace(self, background=background)


def _place(n: int, two: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Centres (n, 2, 2) and radii (n, 2) such that two objects leave a gap between them."""
    lone = torch.rand(n, 1, generator=rng) * 0.08 + 0.20
    pair = torch.rand(n, 2, generator=rng) * 0.04 + 0.17
    radius = torch.where(two[:, None], pair, lone.expand(n, 2))
    centre = torch.zeros(n, 2, 2)
    waiting = torch.ones(n, dtype=torch.bool)
    while waiting.any():
        margin = radius[..., None] * 1.1
        draw = torch.rand(n, 2, 2, generator=rng) * (1 - 2 * margin) + margin
        gap = (draw[:, 0] - draw[:, 1]).norm(dim=-1) - 1.15 * radius.sum(-1)
        fits = waiting & (~two | (gap > 0.02))
        centre[fits] = draw[fits]
        waiting &= ~fits
    return centre, radius


def is_held_out(shape: Tensor, colour: Tensor, background: Tensor) -> Tensor:
    """Which scenes (B,) show a combination that training never sees: one in seven."""
    kind = torch.where(shape >= 0, shape * len(COLOURS) + colour + 1, 0)
    return (shape[:, 0] >= 0) & ((kind.sum(-1) * 5 + background * 3) % 7 == 0)


def _combinations(n: int, two: Tensor, empty: Tensor, rng: torch.Generator, held_out: bool) -> tuple[Tensor, ...]:
    """Shapes (n, 2), colours (n, 2) and backgrounds (n,), all held out or none."""
    shape = torch.zeros(n, 2, dtype=torch.int64)
    colour, background = shape.clone(), torch.zeros(n, dtype=torch.int64)
    waiting = torch.ones(n, dtype=torch.bool)
    while waiting.any():
        s = torch.randint(len(SHAPES), (n, 2), generator=rng)
        c = torch.randint(len(COLOURS), (n, 2), generator=rng)
        b = torch.randint(len(BACKGROUNDS), (n,), generator=rng)
        s[~two, 1] = NOTHING
        s[empty] = NOTHING
        # Two equal objects would make "the red circle" ambiguous.
        equal = two & (s[:, 0] == s[:, 1]) & (c[:, 0] == c[:, 1])
        fits = waiting & ~equal & (empty | (is_held_out(s, c, b) == held_out))
        shape[fits], colour[fits], background[fits] = s[fits], c[fits], b[fits]
        waiting &= ~fits
    return shape, colour, background


def sample_scenes(
    n: int, seed: int, objects: int | None = None, held_out: bool = False, empty_share: float = 0.0
) -> Scenes:
    """Draw n scenes.

    Args:
        seed: the same seed draws the same scenes on every machine.
        objects: 1 or 2 objects in every scene, or None for half of each.
        held_out: only combinations that training never shows, or only those that it shows.
        empty_share: share of scenes without any object.
    """
    rng = torch.Generator().manual_seed(seed)
    two = torch.rand(n, generator=rng) < 0.5
    if objects is not None:
        two = torch.full((n,), objects == 2)
    empty = torch.rand(n, generator=rng) < empty_share
    shape, colour, background = _combinations(n, two & ~empty, empty, rng, held_out)
    centre, radius = _place(n, two, rng)
    stripes = torch.rand(n, 2, 4, generator=rng)
    return Scenes(
        shape=shape,
        colour=colour,
        centre=centre,
        radius=radius,
        angle=(torch.rand(n, 2, generator=rng) - 0.5) * 0.5,
        shade=(torch.rand(n, 2, 3, generator=rng) - 0.5) * 0.08,
        stripes=stripes * torch.tensor([3.0, math.pi, 2 * math.pi, 0.2]) + torch.tensor([3.0, 0.0, 0.0, 0.0]),
        background=background,
        tint=(torch.rand(n, 3, generator=rng) - 0.5) * 0.06,
        light=torch.rand(n, 3, generator=rng) * torch.tensor([0.3, 0.3, 0.25]) - torch.tensor([0.15, 0.15, 0.0]),
        textures=tuple(torch.randn(n, 1, g, g, generator=rng) for g in TEXTURE_GRIDS),
    )


def demo_scene(number: int, objects: int) -> Scenes:
    """The scene that the Demo Scene node shows for a number; far from the seeds of training and of the tables."""
    return sample_scenes(1, 900_000_000 + number, objects=objects, held_out=True)


def _grid(device: torch.device) -> tuple[Tensor, Tensor]:
    """Pixel centres, x (1, S) and y (S, 1), in units of the image side."""
    line = (torch.arange(SIZE, device=device) + 0.5) / SIZE
    return line[None, :], line[:, None]


def distances(scenes: Scenes) -> Tensor:
    """Signed distance of every pixel to every object (B, K, S, S), in pixels; large where nothing is."""
    x, y = _grid(scenes.shape.device)
    u = x - scenes.centre[..., 0, None, None]
    v = y - scenes.centre[..., 1, None, None]
    cos, sin = torch.cos(scenes.angle)[..., None, None], torch.sin(scenes.angle)[..., None, None]
    radius = scenes.radius[..., None, None]
    u, v = (u * cos + v * sin) / radius, (v * cos - u * sin) / radius
    result = torch.full_like(u, 1e3)
    for index in range(len(SHAPES)):
        chosen = scenes.shape == index
        if chosen.any():
            result[chosen] = shape_distance(SHAPES[index], u[chosen], v[chosen])
    return result * radius * SIZE


def masks(scenes: Scenes) -> Tensor:
    """True masks of the objects (B, K, S, S), 1 inside."""
    return (distances(scenes) < 0).float()


def _background(scenes: Scenes) -> Tensor:
    """Backgrounds without objects (B, 3, S, S)."""
    x, y = _grid(scenes.shape.device)
    light = scenes.light[..., None, None]
    shading = 1 + light[:, 0] * (x - 0.5) + light[:, 1] * (y - 0.5)
    shading = shading - light[:, 2] * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
    texture = torch.zeros_like(shading[:, None])
    for strength, grid in zip((0.035, 0.03, 0.02), scenes.textures, strict=True):
        octave = F.interpolate(grid, size=(SIZE, SIZE), mode="bicubic", align_corners=False)
        texture = texture + strength * octave
    rgb = BACKGROUND_RGB.to(light.device)[scenes.background] + scenes.tint
    # The texture is added in part and multiplied in part, so that it also shows on black.
    return rgb[..., None, None] * (shading[:, None] + texture) + 0.5 * texture


def _surface(scenes: Scenes, slot: int, distance: Tensor) -> Tensor:
    """Colours (B, 3, S, S) of the objects in one slot: striped, bevelled, lit from the top left."""
    x, y = _grid(distance.device)
    frequency, direction, phase, strength = (p[:, None, None] for p in scenes.stripes[:, slot].unbind(-1))
    along = x * torch.cos(direction) + y * torch.sin(direction)
    pattern = 1 + strength * torch.sin(2 * math.pi * frequency * along + phase)
    radius = (scenes.radius[:, slot] * SIZE)[:, None, None]
    centre = scenes.centre[:, slot, :, None, None]
    toward_light = ((centre[:, 0] - x) + (centre[:, 1] - y)) * SIZE / radius
    bevel = 1 - 0.25 * torch.exp(distance.clamp(max=0) / (0.12 * radius))
    rgb = COLOUR_RGB.to(distance.device)[scenes.colour[:, slot]] + scenes.shade[:, slot]
    return rgb[..., None, None] * (pattern * bevel * (1 + 0.12 * toward_light))[:, None]


def render(scenes: Scenes) -> Tensor:
    """Draw scenes: images (B, 3, S, S) in 0..1."""
    image = _background(scenes)
    distance = distances(scenes)
    for slot in range(distance.shape[1]):
        # A soft contact shadow falls to the lower right, a few pixels outside the object's mask.
        moved = F.pad(distance[:, slot, :-3, :-3], (3, 0, 3, 0), mode="replicate")
        shadow = torch.sigmoid(-(moved - 1) / 2)[:, None]
        image = image * (1 - 0.35 * shadow)
    for slot in range(distance.shape[1]):
        cover = (0.5 - distance[:, slot]).clamp(0, 1)[:, None]
        image = image * (1 - cover) + _surface(scenes, slot, distance[:, slot]) * cover
    return image.clamp(0, 1)


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def caption(things: Sequence[Thing], background: int = UNSAID) -> str:
    """A caption such as "a red circle and a blue square on a gray background".

    Args:
        things: shape and colour of the objects that are named, colours may be UNSAID.
        background: index into BACKGROUNDS, or UNSAID.
    """
    names = [
        _article(SHAPES[shape] if colour == UNSAID else f"{COLOURS[colour]} {SHAPES[shape]}")
        for shape, colour in things
    ]
    text = " and ".join(names)
    if background == UNSAID:
        return text
    ground = _article(f"{BACKGROUNDS[background]} background")
    return f"{text} on {ground}" if text else ground


def full_captions(scenes: Scenes) -> list[str]:
    """The complete caption of each scene."""
    result = []
    for shapes, colours, background in zip(
        scenes.shape.tolist(), scenes.colour.tolist(), scenes.background.tolist(), strict=True
    ):
        things = [(s, c) for s, c in zip(shapes, colours, strict=True) if s != NOTHING]
        result.append(caption(things, background))
    return result
