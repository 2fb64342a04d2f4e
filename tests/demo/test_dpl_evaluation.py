"""Dynamic Prompt Learning's evaluation: its scenes and what is hard, the overlap, the losses alone, and its tables."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from attention_edit.attention.maps.recorder import MeanMap, Recording
from attention_edit.attention.words.prompt import Prompt, read_prompt
from bundle import load, world
from demo_model import random_model
from measure import dpl_evaluation, dpl_scenes
from measure.dpl_evaluation import EDITS, LEARNED, Measured
from measure.dpl_scenes import Pair
from measure.methods import Setup
from safetensors.torch import save_file
from scenes import captions


def test_every_other_scene_is_hard_and_every_truth_is_told_from_its_source() -> None:
    found = dpl_scenes.pairs(10)
    assert [pair.hard for pair in found] == [False, True] * 5
    assert [pair.before for pair in dpl_scenes.pairs(4)] == [pair.before for pair in found[:4]]
    for pair in found:
        assert pair.success(pair.truth) and not pair.success(pair.source)
        assert bool((pair.scenes.shape != pair.edited.shape).all())
        assert torch.equal(pair.scenes.colour, pair.edited.colour)
        assert float(((pair.truth - pair.source).abs() * pair.kept).max()) < 0.01 and pair.kept.mean() > 0.2


def plain_scene() -> world.Scenes:
    """Two large objects, of different shape and colour, in opposite corners."""
    scenes = world.sample_scenes(1, 3, objects=2)
    scenes = scenes.with_object(0, torch.tensor([0]), torch.tensor([0]))
    scenes = scenes.with_object(1, torch.tensor([1]), torch.tensor([3]))
    centre, radius = torch.tensor([[[0.25, 0.25], [0.75, 0.75]]]), torch.tensor([[0.2, 0.2]])
    return replace(scenes, centre=centre, radius=radius)


def test_scenes_are_hard_by_any_of_the_rules_parts() -> None:
    scene = plain_scene()
    assert not dpl_scenes.hard(scene)
    assert dpl_scenes.hard(scene.with_object(1, shape=torch.tensor([0])))
    assert dpl_scenes.hard(scene.with_object(1, colour=torch.tensor([0])))
    assert dpl_scenes.hard(replace(scene, radius=torch.tensor([[0.2, 0.1]])))
    assert dpl_scenes.hard(replace(scene, centre=torch.tensor([[[0.3, 0.5], [0.75, 0.5]]])))


def twin_pair() -> Pair:
    """A pair whose objects have one noun."""
    return next(pair for pair in dpl_scenes.pairs(40) if pair.words[0][0] == pair.words[1][0])


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_file(random_model(captions.all_captions()), path)
    return Setup(*load.load_demo_model(path), steps=3, guidance=4.0)


def perfect(prompt: Prompt, pair: Pair, swapped: bool) -> Recording:
    """Cross maps that are the true masks, at the size of the latent."""
    values = torch.zeros(1, 256, len(prompt.content))
    truth = F.adaptive_avg_pool2d(pair.masks, 16).flatten(1)
    for word, mask in zip(pair.words, truth.flip(0) if swapped else truth, strict=True):
        values[0, :, prompt.content.index(prompt.find(*word)[0])] = mask
    return Recording(prompt.content, {4: MeanMap(values, (16, 16), 1)}, {}, (16, 16))


def test_overlap_is_that_of_each_word_with_its_own_object(setup: Setup) -> None:
    pair = twin_pair()
    word = pair.words[0][0]
    assert pair.nouns == f"{word}#1, {word}#2" and [place for _, place in pair.words] == [1, 2]
    prompt = read_prompt(setup.clip, pair.before)
    right, wrong = (dpl_evaluation.overlap(perfect(prompt, pair, way), prompt, pair, 4) for way in (False, True))
    assert right > 0.5 and wrong < 0.1


def test_a_loss_alone_is_the_only_one_that_asks_or_counts() -> None:
    values = {"at": 0.5, "dj": 0.95, "bg": 0.8}
    alone = {"attention balancing": "at", "disjoint objects": "dj", "background leakage": "bg"}
    for title, name in alone.items():
        losses = LEARNED[title]
        weighed = losses.weighed({key: torch.tensor(value) for key, value in values.items()})
        assert float(weighed) == pytest.approx(losses.term(name).weight * values[name])
        assert not losses.content(values, 0.0) and losses.content({**values, name: 0.0}, 0.0)
        assert losses.term(name) == LEARNED["all three"].term(name)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One update of everything."""
    monkeypatch.setattr(dpl_evaluation, "RELEASED", replace(dpl_evaluation.RELEASED, iterations=1))
    monkeypatch.setattr(dpl_evaluation, "NULL_UPDATES", 1)
    monkeypatch.setitem(EDITS, "DPL + P2P", 1)


@pytest.mark.usefixtures("quick")
def test_a_run_fills_its_tables_and_goes_on_where_it_was_broken_off(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Namespace(count=1, output=tmp_path)
    with torch.inference_mode():
        first = dpl_evaluation.measure(setup, options, "a model")
        again = dpl_evaluation.measure(setup, replace_count(options, 2), "a model")
        assert again[0] == first[0] and [one.hard for one in again] == [False, True]
        assert again[0].edits.keys() == EDITS.keys() and again[0].overlaps.keys() == LEARNED.keys()
        assert all(0 <= value <= 1 for one in again for of in one.overlaps.values() for value in of.values())
        monkeypatch.setattr(dpl_evaluation, "OneScene", None)
        assert dpl_evaluation.measure(setup, replace_count(options, 2), "a model") == again
        with pytest.raises(TypeError):
            dpl_evaluation.measure(setup, options, "another model")
    assert (tmp_path / "dpl.png").is_file()


def replace_count(options: Namespace, count: int) -> Namespace:
    """The same options with another number of scenes."""
    return Namespace(**{**vars(options), "count": count})


def made(hard: bool, value: float) -> Measured:
    """A scene whose numbers are all made of one."""
    overlaps = {name: {"quarter": value, "half": value / 2} for name in LEARNED}
    return Measured(hard, overlaps, {"released": 0.0, "as used": value}, {way: [1.0, 30.0, 20.0] for way in EDITS})


def test_tables_tell_ordinary_scenes_from_hard_ones() -> None:
    text = dpl_evaluation.tables([made(False, 0.8), made(True, 0.4), made(False, 0.6)])
    rows = {cells[1].strip(): cells[2:-1] for line in text.splitlines() if len(cells := line.split("|")) > 2}
    for name in LEARNED:
        assert [cell.strip() for cell in rows[name]] == ["70.0 %", "35.0 %", "40.0 %", "20.0 %"]
    assert rows["*background mask, below 0.5 (as used)*"][0].strip() == "70.0 %"
    for kind, count in (("ordinary", 2), ("hard", 1)):
        for way in EDITS:
            assert [cell.strip() for cell in rows[f"{kind} ({count}): {way}"]] == ["100.0 %", "30.0 dB", "20.0 dB"]
    assert "hard (" not in dpl_evaluation.tables([made(False, 0.8)])
