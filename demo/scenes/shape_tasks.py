"""Edits of an object's shape, where it is and at another place: what a sketch tells and words do not."""

from __future__ import annotations

import torch
from bundle import sketch, world
from bundle.world import NOTHING, Scenes
from scenes.tasks import SEED, SLOT, Task, another, sample_both, task_between
from torch import Tensor

SHAPE_TASKS = ("reshape", "move")
_SEED = SEED + 200
_TRIES = 400
"""Places that are drawn for each object."""


def reshaped(scenes: Scenes, rng: torch.Generator) -> Scenes:
    """The scenes with another shape in slot 0, of the colour that it has, never such that two objects are alike."""
    shape, waiting = scenes.shape[:, SLOT].clone(), torch.ones(len(scenes), dtype=torch.bool)
    while waiting.any():
        shape[waiting] = another(scenes.shape[:, SLOT], len(world.SHAPES), rng)[waiting]
        waiting = (shape == scenes.shape[:, 1]) & (scenes.colour[:, SLOT] == scenes.colour[:, 1])
    return scenes.with_object(SLOT, shape)


def elsewhere(scenes: Scenes, rng: torch.Generator) -> Tensor:
    """Centres (B, 2) for the objects of slot 0: a radius or more from where they are, and clear of the other object."""
    radius, n = scenes.radius[:, SLOT], len(scenes)
    margin = sketch.MARGIN * radius[:, None, None]
    draw = torch.rand(n, _TRIES, 2, generator=rng) * (1 - 2 * margin) + margin
    moved = (draw - scenes.centre[:, SLOT, None]).norm(dim=-1) - radius[:, None]
    gap = (draw - scenes.centre[:, 1, None]).norm(dim=-1) - 1.15 * scenes.radius.sum(1, keepdim=True)
    alone = (scenes.shape[:, 1] == NOTHING)[:, None]
    room = torch.where(alone, moved, torch.minimum(moved, gap))
    # The first that fits; where none does, the one that is nearest to it.
    chosen = torch.where((room > 0).any(1), (room > 0).float().argmax(1), room.argmax(1))
    return draw[torch.arange(n), chosen]


def make_shape_task(name: str, count: int) -> Task:
    """A task of SHAPE_TASKS on `count` scenes, the same ones on every machine.

    - reshape: the object gets another shape. move: another shape, at another place.
    """
    place = SHAPE_TASKS.index(name)
    scenes, rng = sample_both(count, _SEED + 10 * place), torch.Generator().manual_seed(_SEED + 10 * place + 2)
    edited = reshaped(scenes, rng)
    return task_between(name, scenes, edited.with_object(SLOT, centre=elsewhere(scenes, rng)) if place else edited)
