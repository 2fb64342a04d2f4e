"""`python demo/evaluate.py --dpl`: Dynamic Prompt Learning on scenes of two objects (its Figure 5 and Table 1).

How far each word's maps overlap with its object before learning, with each loss alone and with all three, at guidance 1
and so without a null text; and what becomes of an edit that changes both nouns by Prompt-to-Prompt, upon null-text
inversion and upon Dynamic Prompt Learning. Scenes that are hard by the rule of dpl_scenes.py are told apart. What a
scene gave is kept in the output folder: a run that was broken off goes on there.
"""

from __future__ import annotations

import json
import math
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import comfy.sample
import torch
from machine.pack import pack_module
from measure import report
from measure.dpl_scenes import Pair, pairs
from measure.methods import Setup
from scenes import metrics
from torch import Tensor
from tqdm import tqdm

engine = pack_module("attention.engine.install")
DynamicPromptLearning = pack_module("attention.methods.dpl.inversion").DynamicPromptLearning
grounds = pack_module("attention.methods.dpl.background")
losses_of = pack_module("attention.methods.dpl.losses")
RELEASED = pack_module("attention.methods.dpl.settings").RELEASED
with_learned_words = pack_module("attention.methods.dpl.target").with_learned_words
P2P = pack_module("attention.methods.p2p").P2P
map_masks = pack_module("attention.maps.heat")
record_maps = pack_module("attention.maps.recorder")
family_of = pack_module("host.families").family_of
read_prompt = pack_module("attention.words.prompt").read_prompt
DDIMInversion = pack_module("inversion.ddim_inversion").DDIMInversion

NULL_UPDATES = 10
"""Of the null text in each step, null-text inversion's own number, with which the demo model finds its pictures again
(demo/RESULTS.md); the released 51 take most of the time there is."""
OFF = losses_of.Term(0.0, math.inf, 25.0)
"""A loss that counts for nothing and is always low enough."""
TERMS = ("at", "dj", "bg")
LEARNED: dict[str, Any] = {
    "before": None,
    **{
        {"at": "attention balancing", "dj": "disjoint objects", "bg": "background leakage"}[name]: replace(
            RELEASED.losses, **{other: OFF for other in TERMS if other != name}
        )
        for name in TERMS
    },
    "all three": RELEASED.losses,
}
"""The losses that are learned by; None learns nothing."""
THRESHOLDS = [tenth / 10 for tenth in range(1, 10)]
"""Over which an overlap is the mean, as the paper's curves run over them."""
LEAST = {"released": 0.2, "as used": 0.5}
"""A part of the picture whose mean map of every noun is below is background. By the released number the demo model's
maps of 4 x 4 cells leave hardly any; the other one was chosen on five scenes of another seed."""
SCALES = {"quarter": 4, "half": 2}
"""The maps that the losses are of (4 x 4 cells here, 16 x 16 of SD at 512 pixels), and the finer ones."""
EDITS = {"null text + P2P": 0, "DPL + P2P": RELEASED.iterations}
"""Updates of the nouns that the edit's inversion has."""


@dataclass(frozen=True)
class Measured:
    """What one scene gave.

    Attributes:
        overlaps: by losses and size of the maps, mean intersection over union of both words, 0..1.
        background: overlap of the background mask with the true one by LEAST, 0..1; 0 where none was found.
        edits: by way, [success, dB to the source outside of the objects, dB to the truth].
    """

    hard: bool
    overlaps: dict[str, dict[str, float]]
    background: dict[str, float]
    edits: dict[str, list[float]]


def overlap(recording: Any, prompt: Any, pair: Pair, scale: int) -> float:
    """How far the maps of both words are their objects: mean overlap over words and thresholds, 0..1."""
    options = map_masks.HeatOptions(scales=(scale,))
    heats = torch.cat([map_masks.heat_map(recording, prompt.find(*word), options) for word in pair.words])
    maps = map_masks.min_max(heats)
    found = [metrics.overlap((maps >= bound).float(), pair.masks).mean() for bound in THRESHOLDS]
    return float(torch.stack(found).mean())


class OneScene:
    """The runs of one scene."""

    def __init__(self, setup: Setup, pair: Pair) -> None:
        self.setup, self.pair = setup, pair
        self.prompt, self.target = (read_prompt(setup.clip, text) for text in (pair.before, pair.after))
        self.empty = setup.text([""])
        latents = {"samples": setup.encode(pair.source)}
        self.inversion = DDIMInversion(setup.steps)(setup.model, latents, setup.text([pair.before])).inversion
        places = {name: self.prompt.find(*word) for name, word in zip(pair.nouns.split(", "), pair.words, strict=True)}
        self.backgrounds = {
            name: grounds.background_regions(
                setup.model, self.inversion, self.prompt, places, grounds.Clustering(least=least)
            )[0][0].background()[None]
            for name, least in LEAST.items()
        }

    def learned(self, guidance: float, **values: Any) -> Any:
        """Dynamic Prompt Learning's inversion with some of its settings."""
        null = replace(RELEASED.null, inner=NULL_UPDATES if guidance != 1 else 0, checkpointing=False)
        how = replace(RELEASED, null=null, **values)
        method = DynamicPromptLearning(
            self.setup.clip, self.prompt, self.pair.nouns, how, self.backgrounds["as used"].float()
        )
        return method(self.setup.model, self.inversion, self.empty, guidance).inversion

    def sample(self, model: Any, inversion: Any, positive: Any, guidance: float) -> Tensor:
        """The latent (1, C, h, w) that sampling from the inverted noise ends with."""
        setup, start = self.setup, torch.zeros(inversion.latents.shape[1:])
        return comfy.sample.sample(
            engine.pin(model, inversion, tuple(inversion.schedule)),
            start,
            setup.steps,
            guidance,
            setup.sampler,
            setup.scheduler,
            positive,
            self.empty,
            start,
            disable_pbar=True,
            seed=setup.seed,
        )

    def overlaps(self, losses: Any) -> dict[str, float]:
        """By size of the maps, while the picture is sampled again with what was learned."""
        inversion = self.inversion if losses is None else self.learned(1.0, losses=losses)
        scales = tuple(SCALES.values())
        control = record_maps.recorder(self.prompt, family_of(self.setup.model), scales, (), 0.0, 1.0)
        self.sample(engine.install(self.setup.model, control, inversion), inversion, inversion.conditioning, 1.0)
        found = control.maps.recording
        return {name: overlap(found, self.prompt, self.pair, scale) for name, scale in SCALES.items()}

    def edit(self, iterations: int) -> Tensor:
        """The edited image (1, 3, S, S) in 0..1."""
        inversion = self.learned(self.setup.guidance, iterations=iterations)
        text = self.setup.text([self.pair.after])
        positive = with_learned_words(self.setup.clip, self.target, text, inversion)
        model = engine.install(self.setup.model, P2P(self.prompt, self.target), inversion)
        return self.setup.decode(self.sample(model, inversion, positive, self.setup.guidance))

    def measured(self) -> tuple[Measured, dict[str, Tensor]]:
        """All of it, and the edited images by way."""
        pair, ground = self.pair, 1 - self.pair.masks.amax(0)
        images = {name: self.edit(iterations) for name, iterations in EDITS.items()}
        edits = {
            name: [
                float(pair.success(image)),
                metrics.mean_psnr(image, pair.source, pair.kept),
                metrics.mean_psnr(image, pair.truth),
            ]
            for name, image in images.items()
        }
        overlaps = {name: self.overlaps(losses) for name, losses in LEARNED.items()}
        found = {
            name: float(metrics.overlap(mask.float(), ground[None]).mean()) for name, mask in self.backgrounds.items()
        }
        return Measured(pair.hard, overlaps, found, edits), images


def measure(setup: Setup, options: Namespace, state: str) -> list[Measured]:
    """All scenes; those of an earlier run with the same settings are read from the output folder.

    Args:
        state: what else a result depends on: the model and the pack.
    """
    sampling = [setup.steps, setup.guidance, setup.sampler, setup.scheduler, setup.seed]
    kept = Kept(options.output / "dpl.jsonl", json.dumps([state, *sampling]))
    found, sheet = [], {}
    for number, pair in enumerate(tqdm(pairs(options.count), desc="Dynamic Prompt Learning")):
        one = kept.of(number)
        if one is None:
            one, images = OneScene(setup, pair).measured()
            kept.add(number, one)
            sheet[pair.after] = {"before": pair.source, **images, "truth": pair.truth}
        found.append(one)
    if sheet:
        columns = {name: torch.cat([of[name] for of in sheet.values()]) for name in next(iter(sheet.values()))}
        report.save_sheet(options.output / "dpl.png", columns, list(sheet))
    return found


class Kept:
    """Scenes that were measured already, line by line in a file.

    Attributes:
        key: of the settings; lines with another one are left alone.
    """

    def __init__(self, file: Path, key: str) -> None:
        self.file, self.key = file, key
        lines = file.read_text("utf-8").splitlines() if file.exists() else []
        entries = [json.loads(line) for line in lines]
        self._found = {entry["scene"]: Measured(**entry["measured"]) for entry in entries if entry["key"] == key}

    def of(self, number: int) -> Measured | None:
        """What a scene gave; None if it was not measured yet."""
        return self._found.get(number)

    def add(self, number: int, measured: Measured) -> None:
        """A scene is done."""
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": self.key, "scene": number, "measured": asdict(measured)}) + "\n")


def tables(found: Sequence[Measured]) -> str:
    """Overlaps and edits, each for ordinary and for hard scenes."""
    kinds = {"ordinary": [one for one in found if not one.hard], "hard": [one for one in found if one.hard]}
    kinds = {name: of for name, of in kinds.items() if of}

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    columns = [(name, size) for name in kinds for size in SCALES]
    rows = [
        [losses, *(report.percent(mean([one.overlaps[losses][size] for one in kinds[name]])) for name, size in columns)]
        for losses in LEARNED
    ]
    for least, number in LEAST.items():
        ground = [report.percent(mean([one.background[least] for one in kinds[name]])) for name, _ in columns]
        rows.append([f"*background mask, below {number:g} ({least})*", *ground])
    first = report.markdown(["overlap of the words' maps", *(f"{n}, {size} size" for n, size in columns)], rows)
    rows = []
    for name, of in kinds.items():
        for way in EDITS:
            success, outside, truth = (mean([one.edits[way][place] for one in of]) for place in range(3))
            rows.append([f"{name} ({len(of)}): {way}", report.percent(success), f"{outside:.1f} dB", f"{truth:.1f} dB"])
    header = ["both objects change their shape", "edit success", "background PSNR", "PSNR to the truth"]
    return f"{first}\n{report.markdown(header, rows)}"
