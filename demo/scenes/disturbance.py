"""Scenes with one object not as it shall be: what the demo model learns to put right.

Inpainting, and every edit of a part of a picture, starts from a layout that the rest of the picture contradicts:
beside a yellow square a second yellow square begins to appear where the prompt wants a red circle. Pictures and
their noised versions alone never show such a state, so a small model does not learn to leave it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from bundle import world
from bundle.world import COLOURS, NOTHING, SHAPES, Scenes
from torch import Tensor

_SMALLEST, _FARTHEST = 0.3, 0.6


def disturb(scenes: Scenes, rng: torch.Generator) -> Scenes:
    """The scenes with one object of another colour or shape, missing, or too small and elsewhere.

    Scenes without an object stay as they are, and so do those whose disturbed version would be a combination
    that is held out.
    """
    n = len(scenes)
    two = (scenes.shape != NOTHING).all(1)
    slot = torch.where(two, torch.randint(2, (n,), generator=rng), 0)
    here = torch.nn.functional.one_hot(slot, 2).bool() & (scenes.shape != NOTHING)
    kind = torch.rand(n, 1, generator=rng)

    def chosen(start: float, end: float) -> Tensor:
        return here & (kind >= start) & (kind < end)

    def other(values: Tensor, count: int) -> Tensor:
        return (values + torch.randint(1, count, values.shape, generator=rng)) % count

    like_the_other = scenes.colour.flip(1)
    as_other = torch.rand(n, 1, generator=rng) < 0.5
    colour = torch.where(two[:, None] & as_other, like_the_other, other(scenes.colour, len(COLOURS)))
    size = torch.rand(n, 2, generator=rng) * (1 - _SMALLEST) + _SMALLEST
    shift = (torch.rand(n, 2, 2, generator=rng) * 2 - 1) * _FARTHEST
    moved = chosen(0.55, 0.85)
    shape = torch.where(chosen(0.3, 0.55), other(scenes.shape, len(SHAPES)), scenes.shape)
    found = replace(
        scenes,
        colour=torch.where(chosen(0.0, 0.4), colour, scenes.colour),
        shape=torch.where(chosen(0.85, 1.0), NOTHING, shape),
        radius=torch.where(moved, scenes.radius * size, scenes.radius),
        centre=torch.where(moved[..., None], scenes.centre + shift * scenes.radius[..., None], scenes.centre),
    )
    return _where(~world.is_held_out(found.shape, found.colour, found.background), found, scenes)


def _where(chosen: Tensor, one: Scenes, two: Scenes) -> Scenes:
    """Scenes of `one` where chosen (B,), else of `two`, in what `disturb` changes."""
    fields = {}
    for name in ("colour", "shape", "radius", "centre"):
        a, b = getattr(one, name), getattr(two, name)
        fields[name] = torch.where(chosen.view(-1, *[1] * (a.ndim - 1)), a, b)
    return replace(two, **fields)
