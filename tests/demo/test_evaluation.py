"""The evaluation of the demo model: what it counts, what it calls right, and what it writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bundle import load, world
from demo_model import random_model
from measure import drawing, editing, evaluation, methods, pack_methods, report
from measure.methods import METHODS, Setup
from PIL import Image
from safetensors.torch import save_file
from scenes import captions, tasks

STEPS = 3


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_file(random_model(captions.all_captions()), path)
    return path


@pytest.fixture(scope="module")
def setup(file: Path) -> Setup:
    return Setup(*load.load_demo_model(file), steps=STEPS)


@pytest.fixture(scope="module")
def task() -> tasks.Task:
    return tasks.make_task("recolour", 4)


def test_right_drawings_are_right() -> None:
    scenes = world.sample_scenes(40, 91, held_out=True)
    drawn = drawing.judge_drawings(2.0, scenes, world.render(scenes))
    assert (drawn.one_object, drawn.two_objects, drawn.background, drawn.invented) == (1, 1, 1, 0)


def test_wrong_drawings_are_wrong() -> None:
    scenes = world.sample_scenes(40, 91, held_out=True)
    recoloured = scenes.with_object(0, colour=(scenes.colour[:, 0] + 1) % len(world.COLOURS))
    drawn = drawing.judge_drawings(2.0, scenes, world.render(recoloured))
    assert (drawn.one_object, drawn.two_objects) == (0, 0)
    assert drawn.background == 1
    assert drawn.invented == 1
    drawn = drawing.judge_drawings(2.0, scenes, world.render(scenes.without_object(0)))
    assert (drawn.one_object, drawn.two_objects, drawn.invented) == (0, 0, 0)


@torch.inference_mode()
@pytest.mark.parametrize("name", METHODS)
def test_methods_keep_their_plan(name: str, setup: Setup, task: tasks.Task) -> None:
    images, rows, _ = editing.run_method(setup, METHODS[name], task, 3)
    assert images.shape == task.source.shape
    assert 0 <= images.min() <= images.max() <= 1
    assert rows == METHODS[name].evaluations(STEPS)


@torch.inference_mode()
def test_the_same_result_every_time_and_another_with_another_seed(setup: Setup, task: tasks.Task) -> None:
    first, again = (editing.run_method(setup, METHODS["inpaint"], task, 2)[0] for _ in range(2))
    assert torch.equal(first, again)
    other = editing.run_method(replace(setup, seed=5), METHODS["inpaint"], task, 2)[0]
    assert not torch.equal(first, other)


@torch.inference_mode()
def test_inpainting_leaves_what_is_far_from_the_mask(setup: Setup, task: tasks.Task) -> None:
    corner = torch.zeros_like(task.mask)
    corner[..., :16, :16] = 1
    plain = methods.round_trip(setup, task)
    painted = methods.inpaint(setup, replace(task, mask=corner))
    # Latent cells under the mask, their neighbours, and what the decoder sees of them.
    assert torch.allclose(painted[..., 96:, 96:], plain[..., 96:, 96:], atol=1e-4)
    assert not torch.allclose(painted[..., :16, :16], plain[..., :16, :16], atol=1e-2)


@torch.inference_mode()
def test_every_image_gets_its_own_prompt(setup: Setup) -> None:
    prompts = ["a red circle", "a blue square on a gray background"]
    both = setup.text(prompts)[0][0]
    for row, prompt in enumerate(prompts):
        assert torch.equal(both[row : row + 1], setup.text([prompt])[0][0])


def test_the_whole_evaluation(file: Path, tmp_path: Path) -> None:
    arguments = ["--model", str(file), "--output", str(tmp_path), "--steps", "2", "--count", "2"]
    arguments += ["--prompts", "2", "--guidance", "2", "--methods", "autoencoder", "inpaint"]
    assert evaluation.main([*arguments, "--tasks", "retain", "remove"]) == 1  # random weights miss the bars
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert [(r["task"], r["method"]) for r in results["edits"]] == [
        (task, method) for task in ("retain", "remove") for method in ("autoencoder", "inpaint")
    ]
    assert [r["rows"] for r in results["edits"]] == [0, 4, 0, 4]
    assert results["model"]["shares"].keys() == drawing.BARS.keys()
    with Image.open(tmp_path / "retain.png") as sheet:
        assert sheet.width > 4 * world.SIZE
        assert sheet.height > 2 * world.SIZE


def test_shares_of_fresh_noise_are_measured(file: Path, tmp_path: Path) -> None:
    """CPAM with none, some and all of it, at the same cost."""
    arguments = ["--model", str(file), "--output", str(tmp_path), "--steps", "3", "--count", "2"]
    assert evaluation.main([*arguments, "--variations"]) == 0
    found = json.loads((tmp_path / "results.json").read_text("utf-8"))["variations"]
    assert [(r["task"], r["method"]) for r in found] == [
        (task, method) for task in ("recolour", "replace") for method in pack_methods.VARIATIONS
    ]
    assert all(r["rows"] == r["planned_rows"] == found[0]["rows"] for r in found)
    assert len({r["truth_psnr"] for r in found if r["task"] == "replace"}) == len(pack_methods.VARIATIONS)


def test_a_missing_model_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluation.main(["--model", str(tmp_path / "none.safetensors")]) == 2
    assert "demo model is missing" in capsys.readouterr().out


def test_tables_and_json(tmp_path: Path) -> None:
    table = report.markdown(["a", "b"], [["x", "1"], ["longer", "22"]])
    assert table.splitlines() == ["| a      |  b |", "| ------ | -: |", "| x      |  1 |", "| longer | 22 |"]
    report.save_json(tmp_path / "r.json", {"a": [float("inf"), 1.5], "b": float("nan")})
    assert json.loads((tmp_path / "r.json").read_text("utf-8")) == {"a": [None, 1.5], "b": None}
