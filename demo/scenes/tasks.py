"""Edit tasks on scenes of the demo world whose true result is known, and whether an image shows that result.

Every task edits scenes with combinations that training never saw, half of them with one object and half with
two. The edited object is always the one in slot 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from bundle import world
from bundle.world import NOTHING, UNSAID, Scenes
from scenes import metrics, reader
from torch import Tensor

NAMES = ("recolour", "replace", "retain", "background", "remove")
COUNT = 64
SEED = 555_000_000
"""Far from the seeds of the scenes that the model is trained on."""
REACH = world.SIZE // 10
"""Pixels around the edited region that may change with it: the object's contact shadow fades there."""
CELL = 8
"""Pixels a side of a latent cell."""
SLOT = 0

Judge = Callable[["Task", int, reader.Reading, Tensor], bool]


@dataclass(frozen=True)
class Task:
    """One kind of edit on B scenes."""

    name: str
    scenes: Scenes
    """The scenes as they are."""
    edited: Scenes
    """The scenes as they shall be."""
    source: Tensor
    """(B, 3, S, S) in 0..1, the images to edit."""
    truth: Tensor
    """(B, 3, S, S) in 0..1, the edited scenes rendered."""
    source_captions: list[str]
    """The complete captions of the scenes."""
    local_prompts: list[str]
    """What the edited region shall show, such as "a blue circle"."""
    full_prompts: list[str]
    """The complete captions of the edited scenes, for methods that make the whole image anew."""
    object_mask: Tensor
    """(B, 1, S, S) of 0 and 1: the object in slot 0 as it is."""
    mask: Tensor
    """(B, 1, S, S) of 0 and 1: what is edited. Where the shape changes, the old and the new one together."""
    kept: Tensor
    """(B, 1, S, S) of 0 and 1: where nothing may change."""

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: slice) -> Task:
        """Some of the scenes."""
        values = {k: v[index] for k, v in self.__dict__.items() if k != "name"}
        return Task(name=self.name, **values)

    @property
    def far(self) -> Tensor:
        """(B, 1, S, S) of 0 and 1: the kept pixels two latent cells further off. A decoder mixes nearer ones."""
        return metrics.erode(self.kept, 2 * CELL)

    def success(self, images: Tensor) -> list[bool]:
        """For each image (B, 3, S, S) in 0..1 whether it shows the edit, judged by its pixels alone."""
        judge = _JUDGES[self.name]
        return [judge(self, i, reader.read(image), image) for i, image in enumerate(images)]


def _shows(edited: Scenes, index: int, reading: reader.Reading, slot: int) -> bool:
    """Whether the object of a slot, as it shall be, is found where it belongs."""
    # The drawing may be somewhat larger or elsewhere than the mask says, and must not be cut off there.
    place = metrics.dilate(_object(edited[index : index + 1], slot), world.SIZE // 32)
    found = reader.inside(reading, place)
    wanted = (int(edited.shape[index, slot]), int(edited.colour[index, slot]))
    return found is not None and (found.shape, found.colour) == wanted


def _judge_object(task: Task, index: int, reading: reader.Reading, _: Tensor) -> bool:
    return _shows(task.edited, index, reading, SLOT)


def _judge_background(task: Task, index: int, reading: reader.Reading, _: Tensor) -> bool:
    return _shows_all(task.edited, index, reading)


def _shows_all(edited: Scenes, index: int, reading: reader.Reading) -> bool:
    """Whether every object is found as it shall be, on its ground."""
    slots = [slot for slot in range(2) if edited.shape[index, slot] != NOTHING]
    right = reading.background == int(edited.background[index])
    return right and all(_shows(edited, index, reading, slot) for slot in slots)


def show_scenes(edited: Scenes, images: Tensor) -> list[bool]:
    """For each image (B, 3, S, S) in 0..1 whether it shows a scene's objects, and its ground, as they shall be."""
    return [_shows_all(edited, i, reader.read(image)) for i, image in enumerate(images)]


def _judge_removal(task: Task, index: int, reading: reader.Reading, image: Tensor) -> bool:
    mask = task.mask[index]
    if any(_mostly_inside(found.mask, mask) for found in reading.objects):
        return False
    return reader.ground_inside(image, mask) == int(task.edited.background[index])


def _mostly_inside(found: reader.Mask, mask: Tensor) -> bool:
    """Whether a noticeable part of the mask is covered by something, or something lies in the mask."""
    shared = int((torch.from_numpy(found) & (mask[0] > 0.5)).sum())
    return shared > 0.1 * float(mask.sum()) or shared > 0.5 * int(found.sum())


def _judge_scene(task: Task, index: int, reading: reader.Reading, _: Tensor) -> bool:
    """Nothing beside what shall be there: where an object moves, none may stay behind."""
    wanted = int((task.edited.shape[index] != NOTHING).sum())
    return len(reading.objects) == wanted and _shows_all(task.edited, index, reading)


_JUDGES: dict[str, Judge] = {
    "recolour": _judge_object,
    "replace": _judge_object,
    "retain": _judge_object,
    "background": _judge_background,
    "remove": _judge_removal,
    "reshape": _judge_scene,
    "move": _judge_scene,
}


def _object(scenes: Scenes, slot: int) -> Tensor:
    """The mask (B, 1, S, S) of one slot's objects."""
    return world.masks(scenes)[:, slot : slot + 1]


def join(first: Scenes, second: Scenes) -> Scenes:
    """One batch of two."""
    one, two = dict(first.__dict__), dict(second.__dict__)
    textures = zip(one.pop("textures"), two.pop("textures"), strict=True)
    fields = {k: torch.cat([v, two[k]]) for k, v in one.items()}
    return Scenes(textures=tuple(torch.cat(pair) for pair in textures), **fields)


def sample_both(count: int, seed: int) -> Scenes:
    """Held-out scenes, the first half with one object and the second half with two."""
    return join(
        world.sample_scenes(count - count // 2, seed, objects=1, held_out=True),
        world.sample_scenes(count // 2, seed + 1, objects=2, held_out=True),
    )


def another(old: Tensor, choices: int, rng: torch.Generator) -> Tensor:
    """An index (B,) below `choices` that differs from the old one."""
    return (old + torch.randint(1, choices, old.shape, generator=rng)) % choices


def _edit(name: str, scenes: Scenes, rng: torch.Generator) -> Scenes:
    """The scenes after the edit of a task."""
    if name == "background":
        return scenes.with_background(another(scenes.background, len(world.BACKGROUNDS), rng))
    if name == "remove":
        return scenes.without_object(SLOT)
    shape, colour = scenes.shape[:, SLOT].clone(), scenes.colour[:, SLOT].clone()
    waiting = torch.ones(len(scenes), dtype=torch.bool)
    while waiting.any():
        if name != "recolour":
            shape[waiting] = another(scenes.shape[:, SLOT], len(world.SHAPES), rng)[waiting]
        if name != "retain":
            colour[waiting] = another(scenes.colour[:, SLOT], len(world.COLOURS), rng)[waiting]
        # Never the twin of the other object: a reader, and the prompt, could not tell them apart.
        waiting = (shape == scenes.shape[:, 1]) & (colour == scenes.colour[:, 1])
    return scenes.with_object(SLOT, shape, colour)


def _local_prompts(name: str, edited: Scenes) -> list[str]:
    """What the edited region shall show."""
    if name in ("background", "remove"):
        return [world.caption([], ground) for ground in edited.background.tolist()]
    shapes, colours = edited.shape[:, SLOT].tolist(), edited.colour[:, SLOT].tolist()
    # Without a word on colour, the object has to keep the one that it has.
    said = [UNSAID if name == "retain" else colour for colour in colours]
    return [world.caption([thing]) for thing in zip(shapes, said, strict=True)]


def _full_prompts(name: str, edited: Scenes) -> list[str]:
    """The complete captions of the edited scenes; `retain` leaves the new object's colour unsaid here too."""
    if name != "retain":
        return world.full_captions(edited)
    colours = edited.colour.clone()
    colours[:, SLOT] = UNSAID
    return world.full_captions(replace(edited, colour=colours))


def unchanged(source: Tensor, truth: Tensor) -> Tensor:
    """Where an edit's truth is the source (B, 1, S, S), for images (B, 3, S, S)."""
    return (truth - source).abs().amax(1, keepdim=True) < 0.01


def make_task(name: str, count: int = COUNT) -> Task:
    """A task of NAMES on `count` scenes, the same ones on every machine.

    - recolour: the object gets another colour; replace: another shape and colour.
    - retain: another shape; its colour is not said and has to stay.
    - background: the ground gets another colour, the objects stay.
    - remove: the object is taken away and the ground goes on in its place.
    """
    place = NAMES.index(name)
    scenes = sample_both(count, SEED + 10 * place)
    return task_between(name, scenes, _edit(name, scenes, torch.Generator().manual_seed(SEED + 10 * place + 2)))


def task_between(name: str, scenes: Scenes, edited: Scenes) -> Task:
    """The task, of a name that has a judge, that makes scenes into edited ones."""
    before, objects = _object(scenes, SLOT), world.masks(scenes).amax(1, keepdim=True)
    if name == "background":
        mask, kept = 1 - objects, metrics.erode(objects, world.SIZE // 64)
    else:
        mask = torch.maximum(before, _object(edited, SLOT))
        kept = 1 - metrics.dilate(mask, REACH)
    source, truth = world.render(scenes), world.render(edited)
    # The last of a fading shadow does not count either.
    kept = kept * unchanged(source, truth)
    return Task(
        name=name,
        scenes=scenes,
        edited=edited,
        source=source,
        truth=truth,
        source_captions=world.full_captions(scenes),
        local_prompts=_local_prompts(name, edited),
        full_prompts=_full_prompts(name, edited),
        object_mask=before,
        mask=mask,
        kept=kept,
    )
