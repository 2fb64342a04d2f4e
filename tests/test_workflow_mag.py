"""The workflow mag-edit on a real server: one of two like objects, guided by its mask."""

from __future__ import annotations

import metrics
import pytest
from comfy_server import ComfyServer
from made import Made, add_outputs, assert_kept, execute, prompt_of
from workflow_file import override

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def made(server: ComfyServer) -> Made:
    prompt = prompt_of(server, "mag-edit")
    add_outputs(prompt)
    return execute(server, "mag-edit", prompt)


def test_edits_under_the_mask_and_keeps_the_rest(made: Made) -> None:
    inside = made.images["May Change"][:, :1]
    assert made.images["After"].shape == made.images["Before"].shape
    assert float(metrics.psnr(made.images["After"], made.images["Before"], inside)) < 35, "nothing was edited"
    assert_kept(made)


def test_shows_the_curve_of_the_run(made: Made) -> None:
    """Drawn when the sampler is done: one point for each of 15 iterations in 12 steps."""
    assert made.images["Guidance Curve"].shape == (1, 3, 720, 640)
    told = " ".join(text for shown in made.result.outputs.values() for text in shown.get("text", []))
    assert "token ratio" in told and "180 iterations of 12 steps" in told


def test_without_guidance_it_is_another_picture(made: Made, server: ComfyServer) -> None:
    prompt = prompt_of(server, "mag-edit")
    override(prompt, "AttnEditMAG", preset="custom", iterations=0)
    bare = execute(server, "mag-edit", prompt)
    assert metrics.psnr(bare.images["After"], made.images["After"]) < 50
