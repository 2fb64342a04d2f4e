"""The evaluation of methods without a mask: plans, claims and FPE's layer study."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bundle import load, world
from demo_model import random_model
from measure import editing, evaluation, injection_methods
from measure.methods import METHODS, Setup
from PIL import Image
from safetensors.torch import save_file
from scenes import captions, tasks

STEPS = 5


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_file(random_model(captions.all_captions()), path)
    return path


@pytest.fixture(scope="module")
def setup(file: Path) -> Setup:
    return Setup(*load.load_demo_model(file), steps=STEPS)


@torch.inference_mode()
@pytest.mark.parametrize("name", injection_methods.NAMES)
def test_methods_keep_their_plan(name: str, setup: Setup) -> None:
    """Images of the right size, and as many UNet rows as planned."""
    injection_methods.register()
    task = tasks.make_task(injection_methods.CLAIMS[name][0], 2)
    images, rows, _ = editing.run_method(setup, METHODS[name], task, 2)
    assert images.shape == task.source.shape and torch.isfinite(images).all()
    assert rows == METHODS[name].evaluations(STEPS)


def test_claims_are_tasks() -> None:
    assert set(injection_methods.CLAIMS) == set(injection_methods.NAMES)
    assert all(set(claimed) <= set(tasks.NAMES) for claimed in injection_methods.CLAIMS.values())


def test_the_layer_study_is_one_command(file: Path, tmp_path: Path) -> None:
    arguments = ["--fpe-layers", "--model", str(file), "--output", str(tmp_path), "--count", "2", "--steps", "3"]
    assert evaluation.main(arguments) == 0
    with Image.open(tmp_path / "fpe layers.png") as sheet:
        assert sheet.width > len(injection_methods.STUDY) * world.SIZE and sheet.height > 2 * world.SIZE
