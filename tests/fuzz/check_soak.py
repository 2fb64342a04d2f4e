"""Two hundred mixed runs in one server: its memory comes back to where it was."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import made
import pytest
from machine.base_directory import base_directory
from machine.comfy_server import ComfyServer
from show.workflow_file import without_download

pytestmark = pytest.mark.timeout(0)

RUNS = int(os.environ.get("ATTENTION_EDIT_SOAK", 200))
FEW = {"steps": 3, "inner_steps": 1, "iterations": 1, "null_iterations": 1, "maps": 2, "fine_steps": 4}
HELD: dict[str, Any] = {"class_type": "TestHeld", "inputs": {}}
PIECES = 64 << 20
"""Bytes that fragments of the allocator's heaps may take, whatever the number of runs; the models of the demo are 35 MB
and are loaded some hundred times."""
WARM = 1
"""Rounds of all workflows before the first look: code is loaded, and what is kept of the last 16 runs is full."""


@pytest.fixture
def watched(host, tmp_path):
    """A server that has the pack and a node which tells what it holds."""
    base = base_directory(tmp_path)
    shutil.copy(Path(__file__).with_name("probe_nodes.py"), base / "custom_nodes" / "probe_nodes.py")
    with ComfyServer(Path(sys.executable), host, base, cpu=True) as running:
        yield running


def prompts(server: ComfyServer) -> list[tuple[str, dict[str, Any]]]:
    """All workflows of the pack with the demo model, of few steps."""
    found = []
    for path in without_download(made.FOLDER):
        prompt = made.prompt_of(server, path.stem)
        for entry in prompt.values():
            inputs = entry["inputs"]
            if entry["class_type"] == "AttnEditSelfMaps":
                inputs["chosen"] = "1"  # a region by its number: not every scene shows the shape that is named
            for name, most in FEW.items():
                if isinstance(inputs.get(name), int) and inputs[name] > most:
                    inputs[name] = most
        found.append((path.stem, prompt))
    return found


def held(server: ComfyServer) -> dict[str, int]:
    """What the server holds when its node cache and models have been freed."""
    server.forget()
    HELD["inputs"] = {"number": int(time.monotonic() * 1000)}
    return json.loads(server.run({"held": HELD}).outputs["held"]["text"][0])


def runs(server: ComfyServer, given: list[tuple[str, dict[str, Any]]], number: int) -> None:
    """One run, of other images than those before it: nothing comes from the host's cache but what it may keep."""
    _, prompt = given[number % len(given)]
    for entry in prompt.values():
        if "seed" in entry["inputs"] and isinstance(entry["inputs"]["seed"], int):
            entry["inputs"]["seed"] = number
        if entry["class_type"] == "AttnEditDemoScene":
            entry["inputs"]["scene"] = 1 + number % 7
    server.run(prompt)


def test_memory_comes_back(watched):
    """Not one tensor, model or object of the pack more; resident memory up to what allocators keep in pieces."""
    given = prompts(watched)
    for number in range(WARM * len(given)):
        runs(watched, given, number)
    runs(watched, given, 0)  # the same last run at both looks: its remarks are kept until the next one
    before = held(watched)
    for number in range(RUNS):
        runs(watched, given, number)
    runs(watched, given, 0)
    after = held(watched)
    print(f"before {before}\nafter  {after}")
    resident = after.pop("resident") - before.pop("resident")
    assert after == before
    assert resident < PIECES
