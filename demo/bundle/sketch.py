"""Sketches of demo scenes, white outlines on black as T2I-Adapters for sketches take them, and scenes to sketch: those
with one object of another shape, colour or place.

None of its neighbours but the world is imported, so that nodes can use it as a part of the package.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import world

LINE = 2.5
"""Width of the lines of a sketch, in pixels."""
KEEP = "as it is"
"""Said in the place of a shape or colour that does not change."""
MARGIN = 1.1
"""An object's least distance from the picture's border, to its centre and in units of its radius."""


def outlines(scenes: world.Scenes, width: float | Tensor = LINE) -> Tensor:
    """Outlines of all objects (B, 1, S, S), 1 on a line and 0 elsewhere, with a pixel's ramp between them.

    Args:
        width: of the lines in pixels; or (B,), of each scene's.
    """
    if isinstance(width, Tensor):
        width = width.view(-1, 1, 1, 1)
    from_edge = world.distances(scenes).abs().amin(1, keepdim=True)
    return (0.5 + width / 2 - from_edge).clamp(0, 1)


def altered(
    scenes: world.Scenes, slot: int, shape: str = KEEP, colour: str = KEEP, right: float = 0.0, down: float = 0.0
) -> world.Scenes:
    """The scenes with the object of one slot altered.

    Args:
        shape, colour: words of world.SHAPES and world.COLOURS, or KEEP.
        right, down: how far it is moved, in units of the image side; it stays inside of the picture.
    """
    old = scenes.shape[:, slot]
    margin = MARGIN * scenes.radius[:, slot, None]
    to = scenes.centre[:, slot] + torch.tensor([right, down])
    return scenes.with_object(
        slot,
        None if shape == KEEP else torch.full_like(old, world.SHAPES.index(shape)),
        None if colour == KEEP else torch.full_like(old, world.COLOURS.index(colour)),
        to.clamp(margin, 1 - margin) if right or down else None,
    )


def both_places(before: world.Scenes, after: world.Scenes, slot: int) -> Tensor:
    """Masks (B, 1, S, S) of the objects of one slot, as they are in either scenes: the region that an edit needs."""
    return torch.maximum(world.masks(before)[:, slot : slot + 1], world.masks(after)[:, slot : slot + 1])
