"""The workflow edit-in-turns on a real server: each turn edits what the one before has made, and keeps the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from bundle import world
from made import MARGIN, Made, assert_shows, execute, prompt_of
from scenes import expected, metrics
from show.workflow_file import override

if TYPE_CHECKING:
    from machine.comfy_server import ComfyServer

pytestmark = pytest.mark.server

REPLACE, GROUND = "replace or recolour", "change the background"


@pytest.fixture(scope="module")
def made(server: ComfyServer) -> Made:
    return execute(server, "edit-in-turns", prompt_of(server, "edit-in-turns"))


def truths(made: Made) -> list[world.Scenes]:
    """The scene after each turn, as its prompt has it."""
    scenes, found = expected.scene_of(made.prompt), []
    for title, task, slot in (
        ("Edit Prompt", REPLACE, 0),
        ("Second Edit Prompt", REPLACE, 1),
        ("Third Edit Prompt", GROUND, 0),
    ):
        assert scenes is not None
        scenes = expected.edited(scenes, task, expected.text_of(made.prompt, title), slot)
        found.append(scenes)
    return found


def test_each_turn_shows_its_edit_and_those_before(made: Made) -> None:
    for title, truth in zip(("After Turn 1", "After Turn 2", "After"), truths(made), strict=True):
        assert_shows(made.images[title], truth)


def test_the_second_turn_is_the_first_one_beyond_its_mask(made: Made) -> None:
    """Decoded from the very latents: no more than a rounding apart, where the second edit's cells are not near."""
    scenes = expected.scene_of(made.prompt)
    assert scenes is not None
    kept = 1 - metrics.dilate(world.masks(scenes)[:, 1:], 2 * MARGIN)
    apart = ((made.images["After Turn 2"] - made.images["After Turn 1"]).abs() * kept).max()
    assert kept.sum() > 1000 and float(apart) < 1.5 / 255


def test_only_the_turns_that_changed_run_again(made: Made, server: ComfyServer) -> None:
    """Another prompt for the last turn: the first two pictures come from the cache, and their record is still there."""
    prompt = prompt_of(server, "edit-in-turns")
    override(prompt, "Third Edit Prompt", text="a pink background")
    again = execute(server, "edit-in-turns", prompt)
    assert not torch.equal(again.images["After"], made.images["After"])
    assert all(torch.equal(again.images[t], made.images[t]) for t in ("After Turn 1", "After Turn 2"))
