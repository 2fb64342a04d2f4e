"""The workflow masafusion-sketch on a real server: the sketch says where the new shape comes to lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from bundle import world
from made import Made, execute, prompt_of
from scenes import expected, metrics, reader
from show.workflow_file import override

if TYPE_CHECKING:
    from machine.comfy_server import ComfyServer

pytestmark = pytest.mark.server
NAME = "masafusion-sketch"


@pytest.fixture(scope="module")
def made(server: ComfyServer) -> Made:
    return execute(server, NAME, prompt_of(server, NAME))


def _overlap(made: Made, title: str) -> float:
    """How much of what a picture shows is what the sketch encloses."""
    scenes = expected.sketched_of(made.prompt)
    assert scenes is not None
    drawn = torch.zeros(world.SIZE, world.SIZE)
    for thing in reader.read(made.images[title][0]).objects:
        drawn[torch.from_numpy(thing.mask)] = 1
    return float(metrics.overlap(drawn[None], world.masks(scenes).amax(1))[0])


def test_both_demo_nodes_show_one_scene(made: Made) -> None:
    scenes, sketched = expected.scene_of(made.prompt), expected.sketched_of(made.prompt)
    assert scenes is not None and sketched is not None
    assert torch.equal(scenes.background, sketched.background) and torch.equal(scenes.textures[0], sketched.textures[0])
    assert torch.allclose(made.images["Perfect Edit"], world.render(sketched), atol=1 / 255)


def test_the_sketch_decides_where_and_the_prompt_alone_does_not(made: Made, server: ComfyServer) -> None:
    """Of the edit, and of the intermediate image that it takes its shape from."""
    without = execute(server, NAME, override(prompt_of(server, NAME), "ControlNetApplyAdvanced", strength=0.0))
    for title in ("After", "Intermediate Image"):
        assert _overlap(made, title) > _overlap(without, title), title
