"""Whole workflows on a real server whose GPU is the checks' device: their pictures show what the prompt says."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import device
import pytest
from made import assert_reads, execute, prompt_of
from scenes import expected

if TYPE_CHECKING:
    from machine.comfy_server import ComfyServer

STAND_IN = Path(__file__).resolve().parent / "stand_in"
OPTIONS, SAYS = {
    "simulated": (["--directml", "0", "--gpu-only"], "Using directml with device: simulated"),
    "cuda": ([], "Device: cuda:0"),
}[device.NAME]
"""What the server is started with, and what its log says of it. A card has the host's own memory management."""


@pytest.fixture(scope="module")
def server(host: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A ComfyUI server on the device; on the simulated one text and latents lie there too."""
    from machine.base_directory import base_directory
    from machine.comfy_server import ComfyServer

    base = base_directory(tmp_path_factory.mktemp("comfyui"))
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(STAND_IN), *([before] if before else [])])
    try:
        with ComfyServer(Path(sys.executable), host, base, cpu=False, extra_args=OPTIONS) as running:
            yield running
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@pytest.mark.parametrize("name", ["p2p-swap", "masactrl", "fpe", "pnp", "cpam-replace"])
def test_workflows(name: str, server: ComfyServer) -> None:
    """Read from the pixels: what Edit Prompt says; and the server ran on that device."""
    made = execute(server, name, prompt_of(server, name))
    assert SAYS in server.log_text()
    assert_reads(made.images["After"], expected.text_of(made.prompt))
