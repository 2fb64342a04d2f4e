"""A real ComfyUI server loads the pack, runs prompts, and says what is wrong with bad ones."""

from __future__ import annotations

import io
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from machine.comfy_server import ComfyServer
from machine.prompt_result import PromptError, PromptInterrupted, ServerError
from PIL import Image

if TYPE_CHECKING:
    from machine.comfy_server import ComfyServer as Server

pytestmark = pytest.mark.server


def image_prompt(**changes: Any) -> dict[str, Any]:
    """EmptyImage into SaveImage; `changes` are inputs of the first."""
    image = {"width": 24, "height": 16, "batch_size": 2, "color": 0xFF8000, **changes}
    return {
        "1": {"class_type": "EmptyImage", "inputs": image},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "test"}},
    }


def pack_nodes(server: Server) -> dict[str, Any]:
    """The node definitions that came from this pack."""
    return {
        name: info
        for name, info in server.object_info().items()
        if info["python_module"] == "custom_nodes.attention-edit"
    }


def test_starts_without_errors(server: Server) -> None:
    """Nothing in the log up to the server's start is an error; other tests provoke some later."""
    log = server.log_text().split("To see the GUI go to")[0]
    assert "custom_nodes/attention-edit" in log.replace("\\", "/")
    assert [line for line in log.splitlines() if re.search(r"\b(error|exception|traceback|failed)\b", line, re.I)] == []


def test_nodes_are_listed(server: Server) -> None:
    nodes = pack_nodes(server)
    assert nodes, "the server lists no node of this pack"
    assert [name for name in nodes if not name.startswith("AttnEdit")] == []


def test_every_input_and_output_has_a_tooltip(server: Server) -> None:
    missing: list[str] = []
    for name, info in pack_nodes(server).items():
        inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        missing += [f"{name}.{key}" for key, spec in inputs.items() if not spec[1:] or not spec[1].get("tooltip")]
        tips = info.get("output_tooltips") or [None] * len(info["output"])
        missing += [f"{name} output {i}" for i, tip in enumerate(tips) if not tip]
        missing += [] if info["description"] else [f"{name} description"]
    assert missing == []


def test_runs_a_prompt_and_fetches_images(server: Server) -> None:
    seen: list[tuple[str, int, int]] = []
    result = server.run(image_prompt(), on_progress=lambda *progress: seen.append(progress))
    images = [Image.open(io.BytesIO(server.fetch(image))) for image in result.images("2")]
    assert [image.size for image in images] == [(24, 16)] * 2
    assert images[0].getpixel((3, 3)) == (255, 128, 0)
    assert result.executed == ("1", "2")
    assert seen
    assert {node for node, _, _ in seen} <= {"1", "2"}
    assert server.run(image_prompt()).executed == ()


def test_uploads_an_image(server: Server, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "up.png")
    name = server.upload(tmp_path / "up.png")
    prompt = {"1": {"class_type": "LoadImage", "inputs": {"image": name}}, "2": image_prompt()["2"]}
    result = server.run(prompt)
    assert Image.open(io.BytesIO(server.fetch(result.images()[0]))).getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize(
    ("prompt", "node", "kind", "text"),
    [
        (image_prompt(width=0), "1", "EmptyImage", "smaller than min"),
        ({"5": {"class_type": "NoSuchNode", "inputs": {}}}, "5", "NoSuchNode", "not found"),
        ({"1": image_prompt()["1"]}, None, None, "no outputs"),
    ],
)
def test_refused_prompts(server: Server, prompt: Any, node: str | None, kind: str | None, text: str) -> None:
    with pytest.raises(PromptError, match=text) as caught:
        server.run(prompt)
    assert (caught.value.node_id, caught.value.node_type) == (node, kind)


def test_a_failing_node_is_named(server: Server) -> None:
    prompt = image_prompt()
    prompt["3"] = {"class_type": "RepeatImageBatch", "inputs": {"image": ["1", 0], "amount": 1}}
    (server.base / "input" / "broken.png").write_bytes(b"no image")
    prompt["1"] = {"class_type": "LoadImage", "inputs": {"image": "broken.png"}}
    with pytest.raises(PromptError, match="UnidentifiedImageError") as caught:
        server.run(prompt)
    assert (caught.value.node_id, caught.value.node_type) == ("1", "LoadImage")


def test_interrupt(server: Server) -> None:
    """A prompt of many slow steps ends at once, and the next one runs."""
    prompt = image_prompt(width=4096, height=4096, batch_size=1, color=1)
    last = "1"
    for number in range(10, 22):
        inputs = {"image": [last, 0], "blur_radius": 31, "sigma": 10.0}
        prompt[str(number)] = {"class_type": "ImageBlur", "inputs": inputs}
        last = str(number)
    prompt["2"]["inputs"]["images"] = [last, 0]
    prompt_id = server.queue(prompt)
    deadline = time.monotonic() + 20
    while not server.get("/queue")["queue_running"] and time.monotonic() < deadline:
        time.sleep(0.02)
    server.interrupt(prompt_id)
    with pytest.raises(PromptInterrupted):
        server.wait(prompt_id, 60)
    assert len(server.run(image_prompt(color=7)).images()) == 2


def test_a_server_that_dies_shows_its_log(host: Path, tmp_path: Path) -> None:
    dead = ComfyServer(Path(sys.executable), host, tmp_path, cpu=True, extra_args=["--no-such-option"])
    with pytest.raises(ServerError, match="no-such-option"), dead:
        pytest.fail("it started")
