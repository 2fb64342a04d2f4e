"""The edit tasks: their truths succeed, their sources fail, and nothing else changes between the two."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from bundle import world
from scenes import metrics, tasks
from scenes.tasks import NAMES, Task

COUNT = 24


@cache
def task(name: str) -> Task:
    return tasks.make_task(name, COUNT)


def shapes_and_colours(scenes: world.Scenes) -> list[list[tuple[int, int]]]:
    return [
        list(zip(shapes, colours, strict=True))
        for shapes, colours in zip(scenes.shape.tolist(), scenes.colour.tolist(), strict=True)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_truth_succeeds_and_source_fails(name: str) -> None:
    assert all(task(name).success(task(name).truth))
    assert not any(task(name).success(task(name).source))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_changes_where_nothing_may(name: str) -> None:
    edit = task(name)
    difference = (edit.truth - edit.source).abs().amax(1, keepdim=True)
    assert (difference * edit.kept).max() < 0.01
    if name != "background":
        # All that lies further away than the shadow reaches, and nothing nearer.
        far = 1 - metrics.dilate(edit.mask, tasks.REACH)
        assert (edit.kept <= far).all()
        assert edit.kept.sum() > 0.98 * far.sum()
    assert edit.kept.flatten(1).mean(1).min() > 0.01
    assert (difference * edit.mask).flatten(1).amax(1).min() > 0.1
    assert (edit.kept * edit.mask).sum() == 0
    assert metrics.psnr(edit.truth, edit.source, edit.kept).min() > 45


@pytest.mark.parametrize("name", NAMES)
def test_scenes_are_held_out_and_half_have_two_objects(name: str) -> None:
    scenes = task(name).scenes
    assert world.is_held_out(scenes.shape, scenes.colour, scenes.background).all()
    assert int((scenes.shape[:, 1] != world.NOTHING).sum()) == COUNT // 2


@pytest.mark.parametrize("name", NAMES)
def test_the_same_task_every_time(name: str) -> None:
    again = tasks.make_task(name, COUNT)
    assert torch.equal(again.source, task(name).source)
    assert torch.equal(again.truth, task(name).truth)
    assert again.full_prompts == task(name).full_prompts


def test_edits_change_what_they_name_and_nothing_else() -> None:
    for name in NAMES:
        before, after = task(name).scenes, task(name).edited
        first = [a[0] for a in shapes_and_colours(before)], [a[0] for a in shapes_and_colours(after)]
        changed = {
            "shape": sum(a[0] != b[0] for a, b in zip(*first, strict=True)),
            "colour": sum(a[1] != b[1] for a, b in zip(*first, strict=True)),
            "background": int((before.background != after.background).sum()),
        }
        expected = {
            "recolour": {"colour"},
            "replace": {"shape", "colour"},
            "retain": {"shape"},
            "background": {"background"},
            "remove": {"shape"},
        }[name]
        assert changed == {key: COUNT if key in expected else 0 for key in changed}
        others = [a[1] for a in shapes_and_colours(before)]
        assert [a[1] for a in shapes_and_colours(after)] == others
        if name in ("recolour", "replace", "retain"):
            assert all(a != b for a, b in zip(first[1], others, strict=True))


def test_prompts() -> None:
    edit = task("retain")
    for i in range(COUNT):
        shape = world.SHAPES[int(edit.edited.shape[i, 0])]
        ground = world.BACKGROUNDS[int(edit.edited.background[i])]
        assert edit.local_prompts[i] == f"a {shape}"
        assert edit.full_prompts[i].startswith(f"a {shape}")
        assert edit.full_prompts[i].endswith(f"on a {ground} background")
    edit = task("recolour")
    for i in range(COUNT):
        words = f"{world.COLOURS[int(edit.edited.colour[i, 0])]} {world.SHAPES[int(edit.edited.shape[i, 0])]}"
        assert edit.local_prompts[i] in (f"a {words}", f"an {words}")
        assert words in edit.full_prompts[i]
        assert words not in edit.source_captions[i]
    assert all(p.split()[2:] == ["background"] for p in task("background").local_prompts)
    removed = task("remove")
    assert removed.full_prompts[0] == removed.local_prompts[0]  # the first half shows one object


def test_half_done_edits_fail() -> None:
    edit = task("replace")
    only_shape = edit.edited.with_object(0, colour=edit.scenes.colour[:, 0])
    only_colour = edit.edited.with_object(0, shape=edit.scenes.shape[:, 0])
    assert not any(edit.success(world.render(only_shape)))
    assert not any(edit.success(world.render(only_colour)))
    edit = task("background")
    lost = world.render(edit.edited.without_object(0))
    assert not any(edit.success(lost))
    edit = task("remove")
    # Something else in its place, and a hole of another colour, are no removals.
    swapped = edit.scenes.with_object(0, (edit.scenes.shape[:, 0] + 1) % len(world.SHAPES))
    assert not any(edit.success(world.render(swapped)))
    other = world.render(edit.edited.with_background((edit.edited.background + 1) % len(world.BACKGROUNDS)))
    assert not any(edit.success(torch.where(edit.mask > 0, other, edit.truth)))


def test_a_slice_is_the_same_task_on_fewer_scenes() -> None:
    part = task("replace")[4:9]
    assert len(part) == 5
    assert all(part.success(part.truth))
    assert part.local_prompts == task("replace").local_prompts[4:9]
