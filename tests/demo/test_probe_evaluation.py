"""The probe of attention maps: its classifier, what it is given, which checkpoints it takes, and its tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import comfy.sd
import folder_paths
import pytest
import torch
from bundle import load, transformer
from demo_model import random_model
from measure import evaluation, probe, probe_evaluation
from measure.methods import Setup
from measure.probe_captions import QUESTIONS, demo_captions, paper_captions
from measure.probe_evaluation import Maps
from PIL import Image
from safetensors.torch import save_file
from scenes import captions

CLASSES = 4


def blobs(seed: int, count: int = 160, width: int = 500, told: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps (n, width) of noise, and their classes; if they are told, each has a stretch of its own that is brighter."""
    rng = torch.Generator().manual_seed(seed)
    labels, values = torch.arange(count) % CLASSES, torch.rand(count, width, generator=rng)
    for label in range(CLASSES if told else 0):
        values[labels == label, 20 * label : 20 * label + 20] += 0.5
    return values, labels


def mean_accuracy(values: torch.Tensor, labels: torch.Tensor, shuffle: bool = False) -> float:
    """Over classes and five splits."""
    found = []
    for split in range(5):
        test = probe.held_out([i // CLASSES for i in range(len(labels))], split)
        given = probe.shuffled(labels, split) if shuffle else labels
        found.append(probe.accuracies(probe.coordinates(values, test), given, test, split).nanmean())
    return float(torch.stack(found).mean())


def test_separable_maps_are_learned_and_shuffled_labels_are_not() -> None:
    """Chance is 1/4; five test sets of 32 have a standard error of 0.034, three of which it may be off."""
    values, labels = blobs(1)
    assert mean_accuracy(values, labels) > 0.95
    chance, error = 1 / CLASSES, (1 / CLASSES * (1 - 1 / CLASSES) / (5 * 32)) ** 0.5
    assert mean_accuracy(values, labels, shuffle=True) == pytest.approx(chance, abs=3 * error)
    assert mean_accuracy(*blobs(2, told=False)) == pytest.approx(chance, abs=3 * error)


def test_the_training_images_keep_all_their_distances() -> None:
    values, labels = blobs(3, width=900)
    values[:, 7] = 2.0  # a cell that never changes
    test = probe.held_out(list(range(len(labels))), 0)
    points = probe.coordinates(values, test)
    assert points.shape == (160, 128) and int(test.sum()) == 32
    train = values[~test]
    spread = train.std(0)
    scaled = (train - train.mean(0)) / torch.where(spread > 0, spread, 1)
    ratio = torch.pdist(points[~test]) / torch.pdist(scaled)
    assert torch.allclose(ratio, ratio[0].expand_as(ratio), rtol=1e-4)


def test_noises_are_held_out_as_a_whole_and_anew_in_every_split() -> None:
    noises = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9] * 3
    first, second = (probe.held_out(noises, split) for split in range(2))
    assert int(first.sum()) == int(second.sum()) == 6 and not torch.equal(first, second)
    assert torch.equal(first[:10], first[10:20])


def test_pooled_maps_are_means_of_squares_of_tokens() -> None:
    values = torch.rand(2, 32 * 24, 32 * 24, generator=torch.Generator().manual_seed(4))
    found = probe.pooled(values, (32, 24))
    assert found.shape == (2, 256, 256)
    assert torch.equal(probe.pooled(found, (16, 16)), found)
    grid = values.unflatten(2, (32, 24)).unflatten(1, (32, 24))
    # Rows fall in pairs; of 24 columns the first of 16 holds the first two.
    assert found[0, 0, 0] == pytest.approx(float(grid[0, :2, :2, :2, :2].mean()), rel=1e-5)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_file(random_model(captions.all_captions()), path)
    return path


@pytest.fixture(scope="module")
def maps(file: Path) -> Maps:
    setup = Setup(*probe_evaluation.load_any(file), steps=2)
    with torch.inference_mode():
        return probe_evaluation.record(setup, demo_captions()[:5], 3, 2)


def test_features_are_a_map_of_each_layer_for_every_word(maps: Maps) -> None:
    """Layers of the demo UNet have 16 x 16 to 2 x 2 tokens; the words of a caption have maps of their own."""
    tokens = [256, 256, 64, 64, 16, 16, 4, 16, 16, 16, 64, 64, 64, 256, 256, 256]
    assert maps.layers == list(range(16)) and len(maps.captions) == len(maps.noises) == 15
    for layer, count in enumerate(tokens):
        assert maps.own[layer].shape == (15, count * count)
        rows = maps.own[layer].unflatten(1, (count, count)).sum(-1)
        assert torch.allclose(rows, torch.ones_like(rows), atol=1e-3)
        words = [maps.cross[layer, word] for word in ("a", "colour", "noun")]
        assert all(word.shape == (15, count) for word in words) and not torch.equal(words[0], words[1])
    assert not torch.equal(maps.cross[0, "noun"][0], maps.cross[0, "noun"][1]), "another noise is another image"


def test_tables_have_every_class_of_every_question_and_the_control(maps: Maps, tmp_path: Path) -> None:
    cross = {key: values for key, values in maps.cross.items() if key[0] in (4, 15)}
    two = replace(maps, cross=cross, own={layer: maps.own[layer] for layer in (4, 15)})
    found = probe_evaluation.ask(two, splits=1)
    assert len(found) == len(QUESTIONS) * 2 and all(0 <= one.mean <= 1 for one in found)
    text = probe_evaluation.tables(found)
    heads, rows = text.count("| layer 5 | layer 16 | mean |"), text.splitlines()
    assert heads == 3 and text.count("*shuffled labels*") == len(QUESTIONS)
    for question in QUESTIONS:
        for name in {one.classes[question.asks] for one in maps.captions}:
            assert any(row.startswith(f"| {name}") for row in rows)
    one = next(one for one in found if str(one.question) == "colour by the colour's map" and one.layer == 4)
    row = next(row for row in rows if row.startswith("| *every colour, by the colour*"))
    assert row.split("|")[2].strip() == f"{one.mean:.2f}"
    probe_evaluation.picture(found, tmp_path / "probe.jpg")
    with Image.open(tmp_path / "probe.jpg") as drawn:
        assert drawn.format == "JPEG"


def test_questions_fit_the_captions_of_both_kinds() -> None:
    for made in (demo_captions(), paper_captions()):
        for question in QUESTIONS:
            asked = [one for one in made if question.asks in one.classes and question.part in (None, *one.words)]
            names = [one.classes[question.asks] for one in asked]
            assert len(set(names)) > 3 and len({names.count(name) for name in names}) == 1
        for one in made:
            assert all(word in one.text.split() for word in one.words.values())


def test_any_checkpoint_is_taken_by_its_name_or_file(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Demo files by their tensors' names, others through the host's own loader, and no file is said with its cure."""
    assert probe_evaluation.is_demo(file) and probe_evaluation.is_demo(transformer.TRANSFORMER_FILE)
    other = tmp_path / "other.safetensors"
    save_file({"model.diffusion_model.x": torch.zeros(1)}, other)
    asked: list[str] = []
    monkeypatch.setattr(comfy.sd, "load_checkpoint_guess_config", lambda name: asked.append(name) or (1, 2, 3, 4))
    monkeypatch.setattr(folder_paths, "get_full_path", lambda kind, name: str(tmp_path / name))
    found = probe_evaluation.file_of(Path("other.safetensors"))
    assert probe_evaluation.load_any(found) == (1, 2, 3) and asked == [str(other)]
    with pytest.raises(load.DemoModelError, match=r"Give --model a file or the name of a checkpoint"):
        probe_evaluation.file_of(Path("none.safetensors"))
    assert evaluation.main(["--probe", "--model", "none.safetensors"]) == 2
    assert "Give --model" in capsys.readouterr().out
