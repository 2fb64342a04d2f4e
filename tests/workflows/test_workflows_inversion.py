"""The workflows of better inversions on a real server: under guidance they find the picture, plain ones do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from made import Made, assert_reads, execute, prompt_of
from scenes import metrics
from show.workflow_file import find_node, override

if TYPE_CHECKING:
    from machine.comfy_server import ComfyServer

pytestmark = pytest.mark.server


@pytest.fixture(scope="module", params=["null-text-inversion", "fast-inversion"])
def better(request: pytest.FixtureRequest, server: ComfyServer) -> Made:
    return execute(server, request.param, prompt_of(server, request.param))


def fidelity(made: Made) -> float:
    """PSNR in dB of what sampling under guidance made, against the picture."""
    return float(metrics.psnr(made.images["Reconstruction"], made.images["Before"]))


def test_guided_sampling_finds_the_picture(better: Made, server: ComfyServer) -> None:
    """Against the same check of DDIM Inversion, with the empty prompt as negative prompt."""
    prompt = prompt_of(server, better.name)
    inputs = prompt[find_node(prompt, "AttnEditReconstruct")]["inputs"]
    inputs["inversion"] = [find_node(prompt, "AttnEditInvert"), 0]
    inputs["negative"] = [find_node(prompt, "Empty Prompt"), 0]
    assert fidelity(better) > fidelity(execute(server, better.name, prompt))
    report = better.result.outputs[find_node(better.prompt, "Report")]["text"][0]
    assert "PSNR" in report and "UNet evaluations" in report


def test_shows_its_plot_in_the_node(better: Made) -> None:
    kind = "AttnEditNullText" if better.name == "null-text-inversion" else "AttnEditFixedPoint"
    assert better.result.images(find_node(better.prompt, kind))


def test_another_edit_of_the_same_picture_optimises_nothing(server: ComfyServer) -> None:
    name = "null-text-inversion"
    first = execute(server, name, prompt_of(server, name))
    assert_reads(first.images["After"], first.prompt[find_node(first.prompt, "Edit Prompt")]["inputs"]["text"])
    again = execute(server, name, override(prompt_of(server, name), "Edit Prompt", text="a green circle"))
    assert find_node(again.prompt, "KSampler") in again.result.executed
    for kind in ("AttnEditInvert", "AttnEditNullText"):
        assert find_node(again.prompt, kind) not in again.result.executed
    assert not torch.equal(again.images["After"], first.images["After"])
