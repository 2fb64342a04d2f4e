"""The workflow mag-edit on a real server: one of two like objects, guided by its mask."""

from __future__ import annotations

import pytest
from bundle import world
from machine.comfy_server import ComfyServer
from made import TEXTS, Made, add_outputs, assert_kept, binary_messages, execute, prompt_of
from scenes import metrics, reader
from show.workflow_file import override

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def made(server: ComfyServer) -> Made:
    prompt = prompt_of(server, "mag-edit")
    add_outputs(prompt)
    return execute(server, "mag-edit", prompt)


def test_the_masked_object_is_recoloured_and_its_twin_is_not(made: Made) -> None:
    after, inside = made.images["After"], made.images["May Change"][0, 0] > 0.5
    assert after.shape == made.images["Before"].shape
    assert reader.colour_share(after[0], inside, world.COLOURS.index("yellow")) > 0.5
    objects = reader.read(after[0]).objects
    assert sorted(world.COLOURS[found.colour] for found in objects) == ["red", "yellow"]
    assert {world.SHAPES[found.shape] for found in objects} == {"circle"}
    assert_kept(made)


def test_shows_the_curve_of_the_run(made: Made) -> None:
    """Drawn when the sampler is done: one point for each of 15 iterations in 12 steps."""
    assert made.images["Guidance Curve"].shape == (1, 3, 720, 640)
    told = " ".join(text for shown in made.result.outputs.values() for text in shown.get("text", []))
    assert "token ratio" in told and "180 iterations of 12 steps" in told and "did not work" not in told


def test_tells_each_step_while_it_runs(server: ComfyServer) -> None:
    """On the sampler node: a line for each of the guided steps, as it is done."""
    prompt = prompt_of(server, "mag-edit")
    override(prompt, "KSampler", seed=5)
    lines = [message.decode(errors="replace") for message in binary_messages(server, prompt, TEXTS)]
    told = [line for line in lines if "MAG-Edit: 'yellow', step" in line]
    assert [int(line.split("step ")[1].split(":")[0]) for line in told] == list(range(1, 13))
    assert all("token ratio" in line and "loss" in line for line in told)


def test_without_guidance_it_is_another_picture(made: Made, server: ComfyServer) -> None:
    prompt = prompt_of(server, "mag-edit")
    override(prompt, "AttnEditMAG", preset="custom", iterations=0)
    bare = execute(server, "mag-edit", prompt)
    assert metrics.psnr(bare.images["After"], made.images["After"]) < 50
