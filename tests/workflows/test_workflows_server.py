"""A running workflow on a real server: progress, previews, interrupts, and what it answers to wrong connections."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch
from bundle import world
from machine.prompt_result import PromptError, PromptInterrupted
from made import PREVIEWS, binary_messages, execute, prompt_of
from PIL import Image
from show.workflow_file import Prompt, find_node, override
from torch import Tensor

if TYPE_CHECKING:
    from machine.comfy_server import ComfyServer

pytestmark = pytest.mark.server


def fresh(server: ComfyServer, steps: int) -> Prompt:
    """The replace workflow with other steps, none of it cached: the server forgets what it has."""
    server.forget()
    prompt = prompt_of(server, "cpam-replace")
    override(prompt, "AttnEditInvert", steps=steps)
    override(prompt, "KSampler", steps=steps)
    return prompt


def test_reports_progress(server: ComfyServer) -> None:
    """Inversion and edit count from 1 to their last step."""
    prompt = fresh(server, 8)
    seen: dict[str, list[tuple[int, int]]] = {}
    server.run(prompt, on_progress=lambda node, done, total: seen.setdefault(node, []).append((done, total)))
    for kind in ("AttnEditInvert", "KSampler"):
        reports = [report for report in seen[find_node(prompt, kind)] if report[1] > 1]
        done = [report[0] for report in reports]
        assert done == sorted(done)
        assert len(set(done)) > 2, f"{kind} reported {reports}"
        assert max(done) == reports[-1][1]


def test_sends_previews(server: ComfyServer) -> None:
    """The host's latent preview works while an edit samples: binary messages that hold a picture."""
    prompt = fresh(server, 9)
    previews = binary_messages(server, prompt, PREVIEWS)
    assert previews
    assert b"\xff\xd8\xff" in previews[-1][:4096]  # a JPEG begins
    Image.open(io.BytesIO(previews[-1][previews[-1].index(b"\xff\xd8\xff") :])).load()


@pytest.fixture(scope="module")
def before_interrupts(server: ComfyServer) -> Iterator[Tensor]:
    yield execute(server, "before", fresh(server, 7)).images["After"]


@pytest.mark.parametrize("kind", ["AttnEditInvert", "KSampler"])
def test_interrupt(kind: str, server: ComfyServer, before_interrupts: Tensor) -> None:
    """In the middle of an inversion or an edit it ends within seconds, and the next run is what it was before."""
    prompt = fresh(server, 250)
    node, asked = find_node(prompt, kind), 0.0

    def stop(running: str, done: int, total: int) -> None:
        nonlocal asked
        if running == node and total > 1 and done >= 3 and not asked:
            asked = time.monotonic()
            server.interrupt()

    with pytest.raises(PromptInterrupted, match=kind):
        server.run(prompt, on_progress=stop, timeout=300)
    assert time.monotonic() - asked < 5
    after = execute(server, "after", fresh(server, 7))
    assert find_node(after.prompt, "KSampler") in after.result.executed
    assert torch.equal(after.images["After"], before_interrupts)


def solid(value: float, side: int) -> dict[str, Any]:
    inputs = {"value": value, "width": side, "height": side}
    return {"class_type": "SolidMask", "inputs": inputs, "_meta": {"title": "Solid"}}


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "mask editor.*selects nothing"), (1.0, "Paint the object.*selects everything")]
)
def test_a_mask_that_selects_nothing(value: float, text: str, server: ComfyServer) -> None:
    prompt = prompt_of(server, "cpam-replace")
    prompt["solid"] = solid(value, world.SIZE)
    prompt[find_node(prompt, "AttnEditMasks")]["inputs"]["mask"] = ["solid", 0]
    with pytest.raises(PromptError, match=text) as caught:
        server.run(prompt)
    assert caught.value.node_type == "AttnEditMasks"


def test_a_latent_of_another_size(server: ComfyServer) -> None:
    prompt = prompt_of(server, "cpam-replace")
    inputs = {"width": 64, "height": 64, "batch_size": 1}
    prompt["empty"] = {"class_type": "EmptyLatentImage", "inputs": inputs, "_meta": {"title": "Empty"}}
    prompt[find_node(prompt, "KSampler")]["inputs"]["latent_image"] = ["empty", 0]
    with pytest.raises(PromptError, match="Connect Edit Setup's latent") as caught:
        server.run(prompt)
    assert caught.value.node_type == "KSampler"
