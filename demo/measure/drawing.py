"""How well the demo model draws what captions say: `python demo/evaluate.py --model-bar`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from bundle import world
from measure import methods, report
from measure.editing import run_method
from measure.methods import METHODS, Setup, batches
from scenes import reader, tasks
from torch import Tensor
from tqdm import tqdm

GUIDANCES = (2.0, 3.0, 4.0, 5.0, 7.5)
PROMPT_SEED = 444_000_000
BARS = {"one object": 0.95, "two objects": 0.85, "background": 0.95, "recoloured by inpainting": 0.90}
"""The least share, 0..1, with which the demo model is good enough to show edits on."""


@dataclass(frozen=True)
class Drawn:
    """How well the model draws what captions say, as shares in 0..1 of the images."""

    guidance: float
    one_object: float
    """The object of captions with one is found."""
    two_objects: float
    """Both objects of captions with two are found."""
    background: float
    """The ground has the colour that the caption says."""
    invented: float
    """There is something that the caption does not name."""


def named_things(scenes: world.Scenes, index: int) -> list[tuple[int, int]]:
    """Shape and colour of the objects of one scene."""
    pairs = zip(scenes.shape[index].tolist(), scenes.colour[index].tolist(), strict=True)
    return [(shape, colour) for shape, colour in pairs if shape != world.NOTHING]


def judge_drawings(guidance: float, scenes: world.Scenes, images: Tensor) -> Drawn:
    """Compare images (B, 3, S, S) in 0..1 with the scenes whose captions they were drawn from."""
    found: dict[int, list[bool]] = {1: [], 2: []}
    grounds, invented = [], []
    for index, image in enumerate(images):
        reading, wanted = reader.read(image), named_things(scenes, index)
        seen = [(thing.shape, thing.colour) for thing in reading.objects]
        found[len(wanted)].append(all(thing in seen for thing in wanted))
        grounds.append(reading.background == int(scenes.background[index]))
        invented.append(any(thing not in wanted for thing in seen) or len(seen) > len(wanted))
    shares = (report.share(values) for values in (found[1], found[2], grounds, invented))
    return Drawn(guidance, *shares)


def draw(setup: Setup, count: int, batch: int, folder: Path) -> Drawn:
    """Let the model draw captions of held-out scenes, half of them with two objects."""
    one = world.sample_scenes(count - count // 2, PROMPT_SEED, objects=1, held_out=True)
    two = world.sample_scenes(count // 2, PROMPT_SEED + 1, objects=2, held_out=True)
    scenes = tasks.join(one, two)
    prompts = world.full_captions(scenes)
    images = [
        methods.generate(replace(setup, seed=setup.seed + part.start), prompts[part], world.SIZE)
        for part in tqdm(list(batches(count, batch)), desc=f"drawing at {setup.guidance:g}", leave=False)
    ]
    drawings = torch.cat(images)
    shown = [*range(min(12, len(one))), *range(len(one), min(len(one) + 12, count))]
    report.save_grid(folder / f"drawings {setup.guidance:g}.png", drawings[shown], [prompts[i] for i in shown])
    return judge_drawings(setup.guidance, scenes, drawings)


@dataclass(frozen=True)
class Bar:
    """What the model reached."""

    guidance: float
    """Where it draws best."""
    shares: Mapping[str, float]
    """By the names of BARS, 0..1."""
    drawn: Sequence[Drawn]

    @property
    def missed(self) -> bool:
        """A bar was not reached, or could not be measured."""
        return any(not self.shares[name] >= bar for name, bar in BARS.items())

    def text(self) -> str:
        """Both tables."""
        drawn = report.drawing_table([asdict(d) for d in self.drawn])
        return f"{drawn}\nAt guidance {self.guidance:g}:\n\n{report.bar_table(self.shares, BARS)}"

    def as_results(self) -> dict[str, object]:
        """For the results file."""
        return {"drawn": [asdict(d) for d in self.drawn], "best guidance": self.guidance, "shares": self.shares}


def model_bar(setup: Setup, options: argparse.Namespace) -> Bar:
    """Measure the model itself, at one guidance or at the best of GUIDANCES."""
    guidances = GUIDANCES if options.guidance is None else (options.guidance,)
    drawn = [draw(replace(setup, guidance=g), options.prompts, options.batch, options.output) for g in guidances]
    best = max(drawn, key=lambda d: d.one_object + d.two_objects + d.background)
    task = tasks.make_task("recolour", options.count)
    images = run_method(replace(setup, guidance=best.guidance), METHODS["inpaint"], task, options.batch)[0]
    shares = {
        "one object": best.one_object,
        "two objects": best.two_objects,
        "background": best.background,
        "recoloured by inpainting": report.share(task.success(images)),
    }
    return Bar(best.guidance, shares, drawn)
