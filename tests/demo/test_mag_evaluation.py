"""MAG-Edit's evaluation: its scenes, what it calls an edit, and one of its recipes on a random model."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle import load, world
from demo_model import random_model
from measure import mag_evaluation
from measure.mag_evaluation import ABLATIONS, RECIPES, Recipe
from measure.mag_scenes import NAMES
from measure.methods import Setup
from safetensors.torch import save_file
from scenes import captions


@pytest.mark.parametrize("name", NAMES)
def test_scenes_have_two_objects_of_one_shape_and_a_true_result(name: str) -> None:
    task = mag_evaluation.make_task(name, 16)
    assert all(task.success(task.truth)) and not any(task.success(task.source))
    assert task.structure(task.truth) > 0.9
    assert task.structure(torch.full_like(task.source, 0.5)) < 0.1
    assert float(((task.truth - task.source).abs() * task.kept).max()) < 0.01
    assert len(task.colours.unique()) > 2, "new colours are hardly drawn by chance"
    for before, after, colours in zip(task.before, task.full_prompts, task.colours.tolist(), strict=True):
        shapes = [word for word in before.split() if word in world.SHAPES]
        assert len(shapes) == 2 and shapes[0] == shapes[1]
        for colour in colours:
            word = world.COLOURS[colour]
            assert word in after.split() and word not in before.split()


@pytest.mark.parametrize("name", ["one of two", "a part"])
def test_an_edit_that_spreads_is_none(name: str) -> None:
    """Both objects in the new colour is not what was asked for."""
    task = mag_evaluation.make_task(name, 4)
    paint = world.COLOUR_RGB[task.colours[:, 0]][..., None, None]
    assert not any(task.success(torch.where(task.objects[:, None] > 0, paint, task.source)))


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
    curves: list[Any] = []
    bare = RECIPES["P2P, mask"](setup, task, [])
    guided = Recipe(guidance={"iterations": 1, "scale": 100.0})(setup, task, curves)
    assert [len(parts) for parts in curves] == [2] and mag_evaluation.passes(curves[0]) == 2
    assert guided.shape == task.source.shape and torch.isfinite(guided).all()
    assert not torch.equal(guided, bare)


@pytest.mark.measure
@torch.inference_mode()
def test_tables_and_ablations_run(setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One command each: every baseline, and every setting of the ablations; few updates but where they are counted."""
    for name, ways in {**ABLATIONS, "": RECIPES}.items():
        for label, way in ways.items():
            if name != "iterations" and isinstance(way, Recipe) and way.guidance is not None:
                monkeypatch.setitem(ways, label, replace(way, guidance={**way.guidance, "iterations": 2}))
    options = Namespace(count=1, output=tmp_path)
    found = mag_evaluation.ablations(setup, options)
    assert [(row["task"], row["method"]) for row in found] == [
        (name, way) for name in ABLATIONS for way in ABLATIONS[name]
    ]
    assert len({row["evaluations"] for row in found if row["task"] == "iterations"}) == 5
    monkeypatch.setattr(mag_evaluation, "NAMES", NAMES[:1])
    found = mag_evaluation.tables(setup, options)
    assert [row["method"] for row in found] == list(RECIPES)
    assert all((tmp_path / f"mag {name}.png").is_file() for name in (NAMES[0], *ABLATIONS))
