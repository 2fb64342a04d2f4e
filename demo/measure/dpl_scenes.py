"""Scenes for Dynamic Prompt Learning: two objects whose nouns both change, half of them hard by a rule."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from bundle import world
from bundle.world import Scenes
from scenes import metrics, tasks
from torch import Tensor

SEED = 999_000_000
BLOCK = 64
"""Scenes that are drawn at once, so that a larger count begins with the scenes of a smaller one."""
CROWDED = 14.0
"""Pixels between two objects' outlines below which they crowd each other; one scene in eight."""
SMALL = 0.055
"""Share of the picture below which an object is small; one scene in ten has one."""


def hard(scenes: Scenes) -> Tensor:
    """Which scenes (B,) are hard: objects of one shape or of one colour, crowded ones, or a small one."""
    alike = (scenes.shape[:, 0] == scenes.shape[:, 1]) | (scenes.colour[:, 0] == scenes.colour[:, 1])
    crowded = world.distances(scenes).sum(1).amin((1, 2)) < CROWDED
    small = world.masks(scenes).mean((2, 3)).amin(1) < SMALL
    return alike | crowded | small


def reshaped(scenes: Scenes, seed: int) -> Scenes:
    """The scenes with both objects in another shape each, never two equal objects."""
    rng = torch.Generator().manual_seed(seed)
    found = []
    for old, colour in zip(scenes.shape.tolist(), scenes.colour.tolist(), strict=True):
        new = old
        while any(a == b for a, b in zip(old, new, strict=True)) or (new[0] == new[1] and colour[0] == colour[1]):
            new = torch.randint(len(world.SHAPES), (2,), generator=rng).tolist()
        found.append(new)
    shapes = torch.tensor(found)
    return scenes.with_object(0, shape=shapes[:, 0]).with_object(1, shape=shapes[:, 1])


@dataclass(frozen=True)
class Pair:
    """One scene of two objects, and what becomes of it.

    Attributes:
        scenes, edited: of one scene. source, truth: (1, 3, S, S) in 0..1. before, after: their captions.
        hard: by the rule. kept: (1, 1, S, S) of 0 and 1, where nothing may change.
    """

    scenes: Scenes
    edited: Scenes
    source: Tensor
    truth: Tensor
    before: str
    after: str
    hard: bool
    kept: Tensor

    @property
    def words(self) -> list[tuple[str, int]]:
        """Each object's noun in the caption, and which of its places is meant, from 1."""
        first, second = (world.SHAPES[shape] for shape in self.scenes.shape[0].tolist())
        return [(first, 1), (second, 1 + (first == second))]

    @property
    def nouns(self) -> str:
        """The same as Learn Nouns takes them: "circle, square", or "circle#1, circle#2"."""
        alike = self.words[0][0] == self.words[1][0]
        return ", ".join(f"{word}#{place}" if alike else word for word, place in self.words)

    @property
    def masks(self) -> Tensor:
        """The objects (2, S, S) of 0 and 1."""
        return world.masks(self.scenes)[0]

    def success(self, image: Tensor) -> bool:
        """Whether an image (1, 3, S, S) shows both objects as they shall be, on their ground."""
        return tasks.show_scenes(self.edited, image)[0]


def pairs(count: int) -> list[Pair]:
    """Scenes that training never saw, the same on every machine and for every count: every other one is hard."""
    found: tuple[list[Pair], list[Pair]] = ([], [])
    wanted, seed = (count - count // 2, count // 2), SEED
    while any(len(of) < number for of, number in zip(found, wanted, strict=True)):
        drawn = world.sample_scenes(BLOCK, seed, objects=2, held_out=True)
        for place, is_hard in enumerate(hard(drawn).tolist()):
            if len(found[is_hard]) < wanted[is_hard]:
                found[is_hard].append(_pair(drawn[place : place + 1], is_hard, seed + place))
        seed += BLOCK
    return [found[number % 2][number // 2] for number in range(count)]


def _pair(scenes: Scenes, is_hard: bool, seed: int) -> Pair:
    edited = reshaped(scenes, seed)
    source, truth = world.render(scenes), world.render(edited)
    both = torch.maximum(world.masks(scenes), world.masks(edited)).amax(1, keepdim=True)
    kept = (1 - metrics.dilate(both, tasks.REACH)) * tasks.unchanged(source, truth)
    before, after = (world.full_captions(of)[0] for of in (scenes, edited))
    return Pair(scenes, edited, source, truth, before, after, is_hard, kept)
