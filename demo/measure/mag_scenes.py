"""Scenes for MAG-Edit: two objects of one shape, where words alone do not say which of them is meant."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from bundle import world
from bundle.world import Scenes
from scenes import metrics, reader, tasks
from torch import Tensor

UNSAID = "one of two, unsaid"
NAMES = ("one of two", "a part", "two at once", UNSAID)
SEED = 777_000_000
INSIDE = 0.5
"""Least share of a mask's pixels that must have come to the new colour, or kept the old one."""


@dataclass(frozen=True)
class Local:
    """Edits of colours at places, on B scenes of two objects of one shape, with K masks each.

    Attributes:
        source, truth: (B, 3, S, S) in 0..1, before and after.
        before, full_prompts: captions of the two.
        colours: (B, K) the new colours. masks: (B, K, S, S) of 0 and 1.
        old_colours: (B, J) of what shall not be edited beside them. old_masks: (B, J, S, S) of 0 and 1; what lies
            too near to an edit may be empty.
        objects: (B, S, S) of 0 and 1, both objects.
        kept: (B, 1, S, S) of 0 and 1, where nothing may change.
    """

    name: str
    source: Tensor
    truth: Tensor
    before: list[str]
    full_prompts: list[str]
    colours: Tensor
    masks: Tensor
    old_colours: Tensor
    old_masks: Tensor
    objects: Tensor
    kept: Tensor

    def __len__(self) -> int:
        return len(self.source)

    @property
    def mask(self) -> Tensor:
        """All that is edited: (B, 1, S, S) of 0 and 1."""
        return self.masks.amax(1, keepdim=True)

    def success(self, images: Tensor) -> list[bool]:
        """For each image (B, 3, S, S) whether its masks show their new colours, and the rest of the objects its old."""
        colours = torch.cat([self.colours, self.old_colours], 1)
        masks = torch.cat([self.masks, self.old_masks], 1)
        return [
            all(
                not bool(mask.any()) or reader.colour_share(image, mask, int(colour)) >= INSIDE
                for mask, colour in zip(masks[i], colours[i], strict=True)
            )
            for i, image in enumerate(images)
        ]

    def structure(self, images: Tensor) -> float:
        """How far the objects' outlines are kept: mean intersection over union of what stands out from the ground."""
        return float(np.mean([_overlap(image, objects) for image, objects in zip(images, self.objects, strict=True)]))


def _overlap(image: Tensor, objects: Tensor) -> float:
    true, seen = objects.numpy() > 0, np.zeros(objects.shape, bool)
    for found in reader.read(image).objects:
        seen |= found.mask
    return float((true & seen).sum() / (true | seen).sum())


def twins(count: int, seed: int) -> Scenes:
    """Scenes of two objects of the same shape and of different colours, held out from training."""
    scenes = world.sample_scenes(16 * count, seed, objects=2)
    shapes, colours = scenes.shape.clone(), scenes.colour.clone()
    shapes[:, 1] = shapes[:, 0]
    same = colours[:, 0] == colours[:, 1]
    colours[same, 1] = (colours[same, 1] + 1) % len(world.COLOURS)
    chosen = world.is_held_out(shapes, colours, scenes.background).nonzero()[:count, 0]
    return replace(scenes, shape=shapes, colour=colours)[chosen]


def _new_colours(scenes: Scenes, slots: int, seed: int) -> Tensor:
    """(B, slots) colours that the scene does not have yet, each other than the ones before."""
    rng, found = torch.Generator().manual_seed(seed), []
    for old in scenes.colour.tolist():
        order = torch.randperm(len(world.COLOURS), generator=rng).tolist()
        found.append([colour for colour in order if colour not in old][:slots])
    return torch.tensor(found)


def make_task(name: str, count: int) -> Local:
    """A task of NAMES on the same scenes on every machine.

    - one of two: one of two objects of one shape gets a new colour.
    - a part: the left half of one of them does.
    - two at once: both do, each its own.
    - one of two, unsaid: as the first, but only the new colour is said, so that the words leave open which is meant:
      "a blue circle and a circle".
    """
    seed = SEED + NAMES.index(name)
    scenes, slots = twins(count, seed), 2 if name == "two at once" else 1
    colours, objects = _new_colours(scenes, slots, seed), world.masks(scenes).float()
    edited = scenes
    for slot in range(slots):
        edited = edited.with_object(slot, colour=colours[:, slot])
    source, truth, masks, old = world.render(scenes), world.render(edited), objects[:, :slots], objects[:, slots:]
    if name == "a part":
        left = torch.arange(world.SIZE)[None, None, None] < (scenes.centre[:, 0, :1, None, None] * world.SIZE)
        masks, rest = masks * left, masks * ~left
        # Beside the mask a latent cell changes as a whole, as everywhere in these tables.
        old = torch.cat([rest * (1 - metrics.dilate(masks, tasks.REACH)), old], 1)
        truth = torch.where(masks > 0, truth, source)
    captions = [world.full_captions(s) for s in (scenes, edited)]
    if name == UNSAID:
        quiet = scenes.with_object(0, colour=world.UNSAID * torch.ones_like(colours[:, 0]))
        quiet = quiet.with_object(1, colour=world.UNSAID * torch.ones_like(colours[:, 0]))
        captions = [world.full_captions(s) for s in (quiet, quiet.with_object(0, colour=colours[:, 0]))]
    return Local(
        name=name,
        source=source,
        truth=truth,
        before=captions[0],
        full_prompts=captions[1],
        colours=colours,
        masks=masks,
        old_colours=scenes.colour[:, 2 - old.shape[1] :],
        old_masks=old,
        objects=objects.amax(1),
        kept=1 - metrics.dilate(masks.amax(1, keepdim=True), tasks.REACH),
    )
