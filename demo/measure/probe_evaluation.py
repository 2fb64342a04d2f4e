"""`python demo/evaluate.py --probe`: what attention maps know of the words (Free-Prompt-Editing, section 3).

Images are drawn from captions, and the maps of every layer recorded meanwhile, the mean over heads and steps. A
two-layer classifier is then trained for every layer to tell what the caption says by a map alone; the images that it
is tested on began with noise that it has not seen. With shuffled labels it can learn nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import comfy.sample
import comfy.sd
import folder_paths
import torch
from bundle import load, transformer
from machine.pack import pack_module
from measure import probe, report
from measure.methods import Setup, batches
from measure.probe_captions import QUESTIONS, TABLES, Caption, Question, demo_captions, paper_captions
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

install = pack_module("attention.engine.install").install
recorder = pack_module("attention.maps.recorder")
family_of = pack_module("host.families").family_of
picture_size = pack_module("host.sizes").picture_size
read_prompt = pack_module("attention.words.prompt").read_prompt

SEED = 888_000_000
SPLITS = 3
"""Each with other images held out and other weights of the classifier to begin with."""
MOST_LAYERS = 20
"""From more layers than that the last of each block is probed."""
NOISES_OF_COUNT = 4
"""Scenes of --count for each noise that every caption is drawn from: 16 noises by default."""


def is_demo(path: Path) -> bool:
    """Whether a file is a demo model or a demo transformer, by the names of its tensors."""
    if path.suffix != ".safetensors":
        return False
    with safe_open(path, "pt") as file:
        names = list(file.keys())
    return load.TOKEN_IDS in names or all(name.startswith(transformer.PREFIX) for name in names)


def file_of(named: Path) -> Path:
    """The file of a checkpoint: a file, or a name in the host's folder.

    Raises:
        DemoModelError: there is no such file.
    """
    path = named if named.is_file() else Path(folder_paths.get_full_path("checkpoints", str(named)) or named)
    if not path.is_file():
        names = ", ".join(folder_paths.get_filename_list("checkpoints")) or "none"
        raise load.DemoModelError(
            f"Give --model a file or the name of a checkpoint: there is no {named}. Checkpoints here: {names}."
        )
    return path


def load_any(path: Path) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of a demo file, or of any checkpoint that the host loads."""
    if is_demo(path):
        return transformer.load_demo_file(path)
    model, clip, vae = comfy.sd.load_checkpoint_guess_config(str(path))[:3]
    return model, clip, vae


@dataclass(frozen=True)
class Maps:
    """The maps of n images.

    Attributes:
        captions, noises: n, of each image.
        cross: by layer and part of the caption (n, N); where a caption lacks it, zeros. own: by layer (n, M * M).
    """

    captions: list[Caption]
    noises: list[int]
    cross: dict[tuple[int, str], Tensor]
    own: dict[int, Tensor]

    @property
    def layers(self) -> list[int]:
        """The layers' numbers, from 0."""
        return list(self.own)


def probed_layers(family: Any) -> tuple[Any, ...]:
    """All layers of a family, of large ones the last of each block."""
    if len(family.layers) <= MOST_LAYERS:
        return tuple(family.layers)
    return tuple({layer.block: layer for layer in family.layers}.values())


def draw(setup: Setup, caption: Caption, noise: Tensor) -> tuple[dict[tuple[int, str], Tensor], dict[int, Tensor]]:
    """The maps (B, N) by layer and word, and (B, M * M) by layer, of a caption drawn from noises (B, C, h, w)."""
    prompt, model = read_prompt(setup.clip, caption.text), setup.model
    controls = {}
    for layer in probed_layers(family_of(model)):
        scale = (layer.scale,)
        controls[layer] = recorder.RecordMaps(recorder.AttentionMaps(prompt), scale, scale, 0.0, 1.0, str(layer.index))
        model = install(model, controls[layer])
    positive, negative = (
        setup.clip.encode_from_tokens_scheduled(setup.clip.tokenize(text)) for text in (caption.text, "")
    )
    comfy.sample.sample(
        model,
        noise,
        setup.steps,
        setup.guidance,
        setup.sampler,
        setup.scheduler,
        positive,
        negative,
        torch.zeros_like(noise),
        disable_pbar=True,
        seed=setup.seed,
    )
    cross, own = {}, {}
    for layer, control in controls.items():
        found = control.maps.recording
        own[layer.index] = probe.pooled(found.own[layer.scale].values, found.own[layer.scale].shape).flatten(1)
        for part, word in caption.words.items():
            places = [found.columns.index(place) for place in prompt.find(word, 1)]
            cross[layer.index, part] = found.cross[layer.scale].values[..., places].mean(-1)
    return cross, own


def record(setup: Setup, captions: Sequence[Caption], noises: int, batch: int) -> Maps:
    """The maps of every caption drawn from the same noises, at the size that the model draws best."""
    side = picture_size(setup.model)[0] // family_of(setup.model).cell
    empty = comfy.sample.fix_empty_latent_channels(setup.model, torch.zeros(1, 4, side, side))
    starts = [
        torch.randn(empty.shape, generator=torch.Generator().manual_seed(SEED + setup.seed * noises + number))
        for number in range(noises)
    ]
    parts = [
        draw(setup, caption, torch.cat(starts[chosen]))
        for caption in tqdm(captions, desc="captions drawn", leave=False)
        for chosen in batches(noises, batch)
    ]
    words = ("a", "colour", "noun")
    cross = {
        (layer, word): torch.cat([found.get((layer, word), torch.zeros_like(found[layer, "a"])) for found, _ in parts])
        for layer in parts[0][1]
        for word in words
    }
    own = {layer: torch.cat([found[layer] for _, found in parts]) for layer in parts[0][1]}
    return Maps([one for one in captions for _ in range(noises)], list(range(noises)) * len(captions), cross, own)


@dataclass(frozen=True)
class Probed:
    """What one classifier found in one layer.

    Attributes:
        layer: from 0. classes: by name, the share of its test images named rightly, mean over splits.
        spread: standard deviation over splits of the mean over classes. chance: that mean with shuffled labels.
    """

    question: Question
    layer: int
    classes: dict[str, float]
    spread: float
    chance: float

    @property
    def mean(self) -> float:
        """Over classes, 0..1."""
        return sum(self.classes.values()) / len(self.classes)


def ask(maps: Maps, questions: Sequence[Question] = QUESTIONS, splits: int = SPLITS) -> list[Probed]:
    """Train classifiers for all questions and layers, by questions."""
    found = []
    for question, layer in tqdm(list(product(questions, maps.layers)), desc="classifiers", leave=False):
        asked = [question.asks in one.classes and question.part in (None, *one.words) for one in maps.captions]
        chosen = torch.tensor(asked).nonzero()[:, 0]
        said = [maps.captions[i].classes[question.asks] for i in chosen.tolist()]
        names = list(dict.fromkeys(said))
        labels = torch.tensor([names.index(name) for name in said])
        features = maps.own[layer] if question.part is None else maps.cross[layer, question.part]
        right, chance = [], []
        for split in range(splits):
            test = probe.held_out([maps.noises[i] for i in chosen.tolist()], split)
            points = probe.coordinates(features[chosen], test)
            right.append(probe.accuracies(points, labels, test, split))
            chance.append(probe.accuracies(points, probe.shuffled(labels, split), test, split).nanmean())
        each = torch.stack(right)
        classes = dict(zip(names, each.mean(0).tolist(), strict=True))
        spread = float(each.mean(1).std(correction=0))
        found.append(Probed(question, layer, classes, spread, float(torch.stack(chance).mean())))
    return found


def tables(found: Sequence[Probed]) -> str:
    """The paper's Tables 1 to 3: classes by layers, which are numbered from 1 as there."""
    parts = []
    for title, questions in TABLES.items():
        rows: list[list[str]] = []
        header = [title]
        for question in questions:
            row = [one for one in found if one.question == question]
            header = [title, *(f"layer {one.layer + 1}" for one in row), "mean"]
            by = {None: "", "a": ', by "a"'}.get(question.part, f", by the {question.part}")

            def line(label: str, values: Sequence[float]) -> list[str]:
                return [label, *(f"{value:.2f}" for value in (*values, sum(values) / len(values)))]

            rows += [line(f"{name}{by}", [one.classes[name] for one in row]) for name in row[0].classes]
            rows.append(line(f"*every {question.asks}{by}*", [one.mean for one in row]))
            rows.append(line("*deviation over splits*", [one.spread for one in row]))
            rows.append(line("*shuffled labels*", [one.chance for one in row]))
        parts.append(report.markdown(header, rows))
    return "\n".join(parts)


def picture(found: Sequence[Probed], path: Path) -> None:
    """Draw the mean over classes by layer, a line for each question, and the shuffled labels' of the first."""
    lines = {
        str(question): [(one.layer + 1.0, 100 * one.mean) for one in found if one.question == question]
        for question in QUESTIONS
    }
    for asks in ("noun", "colour"):
        first = next(question for question in QUESTIONS if question.asks == asks)
        lines[f"shuffled, {asks}"] = [(one.layer + 1.0, 100 * one.chance) for one in found if one.question == first]
    report.save_plot(path, lines, "layer", "% of the images that a map tells the word by")


def measure(setup: Setup, count: int, batch: int, demo: bool, folder: Path) -> list[Probed]:
    """Draw, record, classify, and write the picture `probe.jpg` to a folder.

    Args:
        demo: whether the model knows the demo world's words alone.
    """
    captions = demo_captions() if demo else paper_captions()
    found = ask(record(setup, captions, max(2, count // NOISES_OF_COUNT), batch))
    picture(found, folder / "probe.jpg")
    return found
