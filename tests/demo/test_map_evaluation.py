"""The evaluation of attention maps: whose word is whose object, and what counts as found."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from attention_edit.attention.maps.recorder import MeanMap, Recording
from attention_edit.attention.words.prompt import Prompt, read_prompt
from bundle import load, world
from demo_model import random_model
from measure import map_evaluation
from measure.map_evaluation import Found
from measure.methods import Setup
from safetensors.torch import save_file
from scenes import captions


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_file(random_model(captions.all_captions()), path)
    return Setup(*load.load_demo_model(path), steps=3)


def two_circles() -> world.Scenes:
    """A scene with two objects of one shape, in different colours."""
    scenes = world.sample_scenes(1, 3, objects=2)
    return scenes.with_object(0, torch.tensor([0]), torch.tensor([0])).with_object(
        1, torch.tensor([0]), torch.tensor([3])
    )


def perfect(prompt: Prompt, scenes: world.Scenes, swapped: bool = False) -> Recording:
    """Cross maps that are the true masks, at the size of the latent."""
    words = map_evaluation.object_words(scenes)
    values = torch.zeros(1, 256, len(prompt.content))
    truth = F.adaptive_avg_pool2d(world.masks(scenes)[0], 16)[: len(words)].flatten(1)
    for word, mask in zip(words, truth.flip(0) if swapped else truth, strict=True):
        values[0, :, prompt.content.index(prompt.find(*word)[0])] = mask
    cross = {scale: MeanMap(values, (16, 16), 1) for scale in (1, 2, 4, 8)}
    return Recording(prompt.content, cross, {1: MeanMap(torch.eye(256)[None], (16, 16), 1)}, (16, 16))


def test_equal_words_are_told_apart_by_their_places(setup: Setup) -> None:
    scenes = two_circles()
    assert map_evaluation.object_words(scenes) == [("circle", 1), ("circle", 2)]
    prompt = read_prompt(setup.clip, world.full_captions(scenes)[0])
    right = map_evaluation.overlaps(prompt, perfect(prompt, scenes), scenes)
    wrong = map_evaluation.overlaps(prompt, perfect(prompt, scenes, swapped=True), scenes)
    for size in map_evaluation.SIZES:
        assert right[size, "Otsu", 0] > 0.85
        assert wrong[size, "Otsu", 0] < 0.05


def test_measures_every_way(setup: Setup) -> None:
    with torch.inference_mode():
        found = map_evaluation.measure(setup, 2)
    assert len(found) == len(map_evaluation.SIZES) * len(map_evaluation.RULES) * len(map_evaluation.SHARPEN)
    assert all(0 <= value <= 1 for f in found for value in (f.one_object, f.two_objects))
    assert len({f.one_object for f in found}) > 10, "all ways give the same"


def test_tables_change_one_thing_at_a_time() -> None:
    ways = [
        Found(size, rule, times, 0.5 - 0.1 * times, 0.2 + (size == "half") * 0.1 + (rule == "Otsu") * 0.05)
        for size in ("full", "half")
        for rule in ("Otsu", "threshold 0.3")
        for times in (0, 1)
    ]
    text = map_evaluation.tables(ways)
    assert "Best: half maps, Otsu, sharpened 0 times: 42.5 % overlap." in text
    rows = [line.split("|")[1:-1] for line in text.splitlines() if "%" in line and "|" in line]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert cells[:2] == [["full", "50.0 %", "25.0 %"], ["half", "50.0 %", "35.0 %"]]
    assert cells[2:4] == [["Otsu", "50.0 %", "35.0 %"], ["threshold 0.3", "50.0 %", "30.0 %"]]
    assert cells[4:] == [["0 times", "50.0 %", "35.0 %"], ["1 times", "40.0 %", "35.0 %"]]


def test_no_scenes_of_a_kind_is_no_number() -> None:
    assert math.isnan(map_evaluation._mean([]))
