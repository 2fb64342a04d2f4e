"""The workflows of real transformers: written from photo-edit by one command, and run on the demo transformer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from made import FOLDER, execute, prompt_of
from show import blueprints, checkpoints, options, showcase
from show.checkpoints import Checkpoint
from show.workflow_file import override, without_download

if TYPE_CHECKING:
    from machine.comfy_server import ComfyServer

STEPS = 6
every_row = pytest.mark.parametrize("row", checkpoints.ROWS, ids=lambda row: row.name)
DEMO = {"UNETLoader": 0, "CLIPLoader": 1, "VAELoader": 2}
"""The output of the demo model that stands for each loader's."""


@every_row
def test_the_file_is_what_the_row_makes(row: Checkpoint) -> None:
    """`python demo --blueprints` writes them; no file is edited by hand, and the picture is photo-edit's."""
    path = FOLDER / f"{row.name}.json"
    assert path.read_text("utf-8") == checkpoints.files()[path.name]
    assert path.with_suffix(".jpg").read_bytes() == (FOLDER / "photo-edit.jpg").read_bytes()


def test_none_is_left_over_and_none_is_taken_for_the_demos() -> None:
    runs = {path.stem for path in without_download(FOLDER)}
    assert {path.stem for path in FOLDER.glob("*.json")} - runs == {row.name for row in checkpoints.ROWS}


def test_they_are_written_by_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = checkpoints.files()
    monkeypatch.setattr(checkpoints, "files", lambda: made)
    monkeypatch.setattr(blueprints, "write", lambda: [])
    for name in ("photo-edit.json", "photo-edit.jpg"):
        (tmp_path / name).write_bytes((FOLDER / name).read_bytes())
    monkeypatch.setattr(checkpoints, "FOLDER", tmp_path)
    assert showcase.demo(options.parse(["--blueprints"])) == 0
    assert {path.name: path.read_text("utf-8") for path in tmp_path.glob("photo-edit-*.json")} == made


@every_row
def test_the_note_names_every_file(row: Checkpoint) -> None:
    """Folder, name, size and licence; and the loaders tell the front end what it may offer."""
    nodes = json.loads((FOLDER / f"{row.name}.json").read_text("utf-8"))["nodes"]
    note = next(node["widgets_values"][0] for node in nodes if node.get("title") == "Read me")
    offered = {model["name"]: model for node in nodes for model in node["properties"].get("models", [])}
    assert row.licence in note and row.repository in note
    for file in row.files:
        assert f"`models/{file.folder}/{file.name}` ({file.size:g} GB)" in note
        assert offered[file.name]["directory"] == file.folder
        assert offered[file.name]["url"].endswith(
            f"{row.repository}/resolve/main/split_files/{file.folder}/{file.name}"
        )


def on_demo(prompt: dict[str, Any]) -> dict[str, Any]:
    """The prompt with the demo's scene and transformer where the loaders are."""
    kinds = {name: entry["class_type"] for name, entry in prompt.items()}
    scene = {"class_type": "AttnEditDemoScene", "inputs": {"scene": 4, "objects": 1}, "_meta": {"title": "Scene"}}
    demo = {"class_type": "AttnEditDemoModel", "inputs": {"network": "transformer"}, "_meta": {"title": "Demo"}}
    found = {name: entry for name, entry in prompt.items() if kinds[name] not in DEMO}
    found["demo"] = demo
    for name, entry in found.items():
        if kinds.get(name) == "LoadImage":
            found[name] = scene
        for key, value in entry["inputs"].items():
            if isinstance(value, list) and kinds.get(value[0]) in DEMO:
                entry["inputs"][key] = ["demo", DEMO[kinds[value[0]]]]
    return found


@pytest.mark.server
@every_row
def test_runs_on_the_demo_transformer(row: Checkpoint, server: ComfyServer) -> None:
    """The same nodes, links and settings; few steps are enough to see that the kept part is kept and the other not."""
    prompt = on_demo(prompt_of(server, row.name))
    override(prompt, "AttnEditInvert", steps=STEPS)
    override(prompt, "KSampler", steps=STEPS)
    override(prompt, "Edit Prompt", text="a blue square")
    made = execute(server, row.name, prompt)
    before, after = made.images["Before"], made.images["After"]
    assert before.shape == after.shape and torch.isfinite(after).all()
    same = (before == after).all(1).float().mean()
    assert 0.1 < float(same) < 0.999, f"{float(same):.3f} of the pixels are the photograph's own"
