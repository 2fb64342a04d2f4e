"""How well recorded attention maps find the objects of scenes: overlap of their masks with the true ones.

The scenes are inverted with their captions, and each object is looked for by its shape's word. The demo model's
latents are 16 cells wide, so its maps have 16, 8, 4 and 2 cells to a side where SD at 512 pixels has 64, 32, 16
and 8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from bundle import world
from machine.pack import pack_module
from measure import report
from measure.methods import Setup
from scenes import metrics, tasks
from torch import Tensor
from tqdm import tqdm

install = pack_module("attention.engine.install").install
map_masks = pack_module("attention.maps.heat")
record_maps = pack_module("attention.maps.recorder")
read_prompt = pack_module("attention.words.prompt").read_prompt
family_of = pack_module("host.families").family_of
DDIMInversion = pack_module("inversion.ddim_inversion").DDIMInversion

SEED = 666_000_000
"""Far from the seeds of training and of the edits."""
SIZES: dict[str, tuple[int, ...] | None] = {
    **{name: (scale,) for name, scale in record_maps.SIZES.items()},
    "full and half": (1, 2),
    "half and quarter": (2, 4),
    "all": None,
}
RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "threshold 0.3": lambda heat: map_masks.mask_of_heat(heat, "threshold", 0.3),
    "threshold 0.45": lambda heat: map_masks.mask_of_heat(heat, "threshold", 0.45),
    "threshold 0.6": lambda heat: map_masks.mask_of_heat(heat, "threshold", 0.6),
    "Otsu": lambda heat: map_masks.mask_of_heat(heat, "Otsu"),
    "largest share 0.15": lambda heat: map_masks.mask_of_heat(heat, "largest share", share=0.15),
}
SHARPEN = (0, 1, 2, 4)


@dataclass(frozen=True)
class Found:
    """How well one way to make masks of maps does."""

    size: str
    rule: str
    sharpen: int
    one_object: float
    """Mean intersection over union with the true mask, 0..1, on scenes with one object."""
    two_objects: float
    """The same for both objects of scenes with two."""

    @property
    def mean(self) -> float:
        """Mean of both kinds of scenes."""
        return (self.one_object + self.two_objects) / 2


Way = tuple[str, str, int]


def record(setup: Setup, scenes: world.Scenes) -> tuple[Any, Any]:
    """Prompt and recording of the inversion of one scene with its caption."""
    prompt = read_prompt(setup.clip, world.full_captions(scenes)[0])
    control = record_maps.recorder(prompt, family_of(setup.model), (1, 2, 4, 8), (1,), 0.0, 1.0)
    latent = {"samples": setup.encode(world.render(scenes))}
    DDIMInversion(setup.steps)(install(setup.model, control), latent, setup.text([prompt.text]))
    return prompt, control.maps.recording


def object_words(scenes: world.Scenes) -> list[tuple[str, int]]:
    """Shape word of each object of one scene, and which of its places in the caption is meant, from 1."""
    shapes = [world.SHAPES[shape] for shape in scenes.shape[0].tolist() if shape != world.NOTHING]
    return [(word, shapes[:place].count(word) + 1) for place, word in enumerate(shapes)]


def overlaps(prompt: Any, recording: Any, scenes: world.Scenes) -> dict[Way, float]:
    """Mean overlap with the true masks of one scene's objects, by way."""
    truth, scores = world.masks(scenes)[0], {}
    words = object_words(scenes)
    for (size, scales), times in product(SIZES.items(), SHARPEN):
        options = map_masks.HeatOptions(sharpen=times, scales=scales)
        heats = [map_masks.heat_map(recording, prompt.find(*word), options) for word in words]
        for rule, select in RULES.items():
            masks = torch.cat([select(map_masks.min_max(heat)) for heat in heats])
            scores[size, rule, times] = float(metrics.overlap(masks, truth[: len(words)]).mean())
    return scores


def measure(setup: Setup, count: int) -> list[Found]:
    """All ways on `count` scenes, half of them with two objects."""
    sums: dict[int, list[dict[Way, float]]] = {1: [], 2: []}
    scenes = tasks.join(
        world.sample_scenes(count - count // 2, SEED, objects=1, held_out=True),
        world.sample_scenes(count // 2, SEED + 1, objects=2, held_out=True),
    )
    for i in tqdm(range(count), desc="attention maps", leave=False):
        scene = scenes[i : i + 1]
        sums[len(object_words(scene))].append(overlaps(*record(setup, scene), scene))
    return [
        Found(*way, *(_mean([score[way] for score in sums[objects]]) for objects in (1, 2)))
        for way in product(SIZES, RULES, SHARPEN)
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def tables(found: Sequence[Found]) -> str:
    """Layer sizes, then rules, then sharpening, each with the other two as in the best of all ways."""
    best = max(found, key=lambda f: f.mean)
    parts = []
    for part, title in (("size", "map size"), ("rule", "rule"), ("sharpen", "sharpened")):
        fixed = {key: getattr(best, key) for key in ("size", "rule", "sharpen") if key != part}
        rows = [f for f in found if all(getattr(f, key) == value for key, value in fixed.items())]
        labels = [str(getattr(f, part)) + (" times" if part == "sharpen" else "") for f in rows]
        parts.append(report.overlap_table(title, labels, [(f.one_object, f.two_objects) for f in rows]))
    said = f"Best: {best.size} maps, {best.rule}, sharpened {best.sharpen} times: {100 * best.mean:.1f} % overlap.\n"
    return "\n".join([*parts, said])
