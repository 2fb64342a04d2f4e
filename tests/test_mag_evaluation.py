"""MAG-Edit's evaluation: its scenes, what it calls an edit, and one of its recipes on a random model."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import captions
import load
import mag_evaluation
import pytest
import torch
import world
from demo_model import random_model
from mag_evaluation import NAMES, RECIPES, Recipe
from methods import Setup
from safetensors.torch import save_file


@pytest.mark.parametrize("name", NAMES)
def test_scenes_have_two_objects_of_one_shape_and_a_true_result(name: str) -> None:
    task = mag_evaluation.make_task(name, 3)
    assert all(task.success(task.truth)) and not any(task.success(task.source))
    assert float(((task.truth - task.source).abs() * task.kept).max()) < 0.01
    for before, after, colours in zip(task.before, task.after, task.colours.tolist(), strict=True):
        shapes = [word for word in before.split() if word in world.SHAPES]
        assert len(shapes) == 2 and shapes[0] == shapes[1]
        for colour in colours:
            word = world.COLOURS[colour]
            assert word in after.split() and word not in before.split()


def test_only_a_half_is_masked_and_edited_in_a_part() -> None:
    task = mag_evaluation.make_task("a part", 2)
    whole = mag_evaluation.make_task("one of two", 2)
    changed = (task.truth != task.source).any(1)
    assert not (changed & (task.masks[:, 0] == 0)).any()
    assert 0.3 < float(task.masks.sum() / whole.masks.sum()) < 0.7


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    """A random model of the demo model's sizes."""
    path = tmp_path / "model.safetensors"
    save_file(random_model(captions.all_captions()), path)
    return Setup(*load.load_demo_model(path), steps=3)


@torch.inference_mode()
def test_two_at_once_runs_with_two_guided_words(setup: Setup) -> None:
    task = mag_evaluation.make_task("two at once", 1)
    bare = mag_evaluation.edit(setup, task, 0, RECIPES["P2P, mask"])
    guided = mag_evaluation.edit(setup, task, 0, Recipe(guidance={"iterations": 1, "scale": 100.0}))
    assert guided.shape == task.source.shape and torch.isfinite(guided).all()
    assert not torch.equal(guided, bare)


@torch.inference_mode()
def test_tables_and_ablations_run(setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One command each: every baseline on every task, and every setting of the ablations on the first."""
    monkeypatch.setattr(mag_evaluation, "RECIPES", {"P2P": RECIPES["P2P"]})
    monkeypatch.setattr(mag_evaluation, "ABLATIONS", {"iterations": {"0": Recipe(guidance={"iterations": 0})}})
    options = Namespace(count=1, output=tmp_path)
    found = mag_evaluation.tables(setup, options)
    assert [(row["task"], row["method"]) for row in found] == [(name, "P2P") for name in NAMES]
    found = mag_evaluation.ablations(setup, options)
    assert [(row["task"], row["method"]) for row in found] == [("iterations", "0")]
    assert all((tmp_path / f"mag {name}.png").is_file() for name in (*NAMES, "iterations"))
