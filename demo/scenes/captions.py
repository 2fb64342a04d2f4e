"""The table of all captions of the demo world, and how training draws from it."""

from __future__ import annotations

import torch
from bundle.world import BACKGROUNDS, COLOURS, NOTHING, SHAPES, UNSAID, Scenes, Thing, caption
from torch import Tensor

_PER_SLOT = 1 + len(SHAPES) * (1 + len(COLOURS))
_GROUNDS = 1 + len(BACKGROUNDS)


def all_captions() -> list[str]:
    """Every caption there is, at the index that `caption_index` gives it."""
    kinds: list[list[Thing]] = [[]]
    kinds += [[(shape, colour)] for shape in range(len(SHAPES)) for colour in range(UNSAID, len(COLOURS))]
    return [
        caption(first + second, ground)
        for first in kinds
        for second in kinds
        for ground in range(UNSAID, len(BACKGROUNDS))
    ]


def caption_index(shape: Tensor, colour: Tensor, background: Tensor) -> Tensor:
    """Index (B,) into `all_captions` of captions that name shapes (B, 2), colours (B, 2), backgrounds (B,)."""
    kind = torch.where(shape == NOTHING, 0, 1 + shape * (1 + len(COLOURS)) + colour + 1)
    return (kind[:, 0] * _PER_SLOT + kind[:, 1]) * _GROUNDS + background + 1


def training_captions(scenes: Scenes, rng: torch.Generator, whole: Tensor) -> Tensor:
    """Draw a caption index (B,) per scene, as people caption photographs: not everything is always said.

    Sampling needs the empty caption (guidance), localized prompts need "a blue circle" without a background
    and beside another object, and keeping an object's look needs "a star" without a colour.

    Args:
        whole: (B,) of bool, the scenes of which all is said.
    """
    n, device = len(scenes), scenes.shape.device

    def chance(p: float, *size: int) -> Tensor:
        return (torch.rand(n, *size, generator=rng, device=device) < p) & ~whole.view(-1, *[1] * len(size))

    shape, colour, background = scenes.shape.clone(), scenes.colour.clone(), scenes.background.clone()
    swap = torch.rand(n, generator=rng, device=device) < 0.5
    shape[swap], colour[swap] = shape[swap].flip(1), colour[swap].flip(1)
    colour[chance(0.12, 2)] = UNSAID
    background[chance(0.2)] = UNSAID
    # One of two objects unnamed; now and then both, so that a bare "a pink background" means the ground.
    drop = chance(0.12) & (shape != NOTHING).all(1)
    shape[drop, 1] = NOTHING
    shape[chance(0.06)] = NOTHING
    empty = chance(0.1)
    shape[empty], background[empty] = NOTHING, UNSAID
    return caption_index(shape, colour, background)
