"""What several edits in a row leave of an image: `python demo/evaluate.py --turns`.

In scenes of two objects one of them is recoloured in each turn, by turns. The result is the next turn's source: by its
own trajectory (Next Turn), or decoded, encoded and inverted anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from bundle import world
from bundle.world import Scenes
from measure import pack_methods, report
from measure.methods import Setup, batches, counted
from measure.pack_methods import SHIPPED, Recipe
from scenes import metrics, tasks
from scenes.tasks import Task
from torch import Tensor
from tqdm import tqdm

turns = pack_methods.pack_module("attention.engine.turns")

TURNS = 5
SEED = tasks.SEED + 100
NEXT, ANEW = "Next Turn", "decoded, encoded, inverted anew"
ALONE = "autoencoder alone, each turn"


@dataclass(frozen=True)
class Kept:
    """What is left after some edits in a row.

    Attributes:
        way: the recipe, and how its result became the next source. turn: from 1.
        success: share of images, 0..1, that show all edits so far and everything else as it was.
        background_psnr: dB to the photograph, of the first turn on, where no turn may change anything.
        latent: largest difference to the photograph's latent, in the network's scale, in cells that no turn changes.
        rows: UNet evaluations of this turn per image, counted.
    """

    way: str
    turn: int
    success: float
    background_psnr: float
    latent: float
    rows: float


def recoloured(scenes: Scenes, slot: int, rng: torch.Generator) -> Scenes:
    """Scenes of two objects, of which one has another colour, never such that both are alike."""
    old, other = scenes.colour[:, slot], 1 - slot
    while True:
        by = torch.randint(1, len(world.COLOURS), old.shape, generator=rng)
        colour = (old + by) % len(world.COLOURS)
        twins = (scenes.shape[:, slot] == scenes.shape[:, other]) & (colour == scenes.colour[:, other])
        if not twins.any():
            return scenes.with_object(slot, colour=colour)


def chain(count: int) -> list[Task]:
    """The turns' tasks on one photograph each; all have its picture as their source, and what no turn may change."""
    scenes, rng = world.sample_scenes(count, SEED, objects=2, held_out=True), torch.Generator().manual_seed(SEED)
    photograph, captions = world.render(scenes), world.full_captions(scenes)
    masks = world.masks(scenes)
    kept = 1 - metrics.dilate(masks.amax(1, keepdim=True), tasks.REACH)
    found = []
    for turn in range(TURNS):
        slot = turn % 2
        scenes, before = recoloured(scenes, slot, rng), scenes
        things = zip(scenes.shape[:, slot].tolist(), scenes.colour[:, slot].tolist(), strict=True)
        found.append(
            Task(
                name="recolour",
                scenes=before,
                edited=scenes,
                source=photograph,
                truth=world.render(scenes),
                source_captions=captions,
                local_prompts=[world.caption([thing]) for thing in things],
                full_prompts=(captions := world.full_captions(scenes)),
                object_mask=masks[:, slot : slot + 1],
                mask=masks[:, slot : slot + 1],
                kept=kept,
            )
        )
    return found


@dataclass(frozen=True)
class _State:
    """Where a chain is: the latents (B, 4, h, w) of its images, as a LATENT carries them, and the images (B, 3, S, S).

    Attributes:
        source: the latents' INVERSION, where it is known. rows: UNet evaluations per image that the turn took.
    """

    latents: Tensor
    image: Tensor
    source: Any = None
    rows: float = 0.0


def _turn(setup: Setup, task: Task, recipe: Recipe, way: str, before: _State) -> _State:
    """One edit of what the turn before has left."""
    with counted(setup) as (counting, counter):
        source = before.source or pack_methods.inverted(counting, setup.encode(before.image))
        model, _ = pack_methods.with_cpam(counting, task, recipe, source)
        model = pack_methods.pin(model, source, tuple(source.schedule))
        if way == NEXT:
            model = pack_methods.install(model, turns.RecordTurn())
        out = pack_methods.sampled(counting, model, task, recipe, source)
    found = turns.turn_of(model, {"samples": out}).inversion(setup.text([""])) if way == NEXT else None
    return _State(out, setup.decode(out), found, counter.rows / len(task))


def _states(setup: Setup, turns_of: Sequence[Task], recipe: Recipe | None, way: str) -> Iterator[_State]:
    """What each turn leaves; without a recipe, of the autoencoder's round trips."""
    state = _State(torch.empty(0), turns_of[0].source)
    for number, task in enumerate(turns_of):
        if recipe is None:
            latents = setup.encode(state.image)
            state = _State(latents, setup.decode(latents))
        else:
            state = _turn(replace(setup, seed=setup.seed + number), task, recipe, way, state)
        yield state


def _largest(latents: Tensor, photograph: Tensor, tasks_of: Sequence[Task], scale: float) -> float:
    """The largest difference of latents (B, 4, h, w) in cells that no turn's masks hold, times a scale."""
    changed = torch.stack([pack_methods.masks_of(task, pack_methods.PAPER).changed for task in tasks_of]).any(0)
    free = ~pack_methods.resize(changed, (latents.shape[-2], latents.shape[-1]), "any")[:, None]
    return float(((latents - photograph).abs() * free).max()) * scale


def measure(setup: Setup, count: int, batch: int) -> list[Kept]:
    """CPAM, bare and behind Exact Background, in both ways, and the autoencoder by itself."""
    ways = [(f"{name}: {way}", recipe, way) for name, recipe in SHIPPED.items() for way in (NEXT, ANEW)]
    latent_format: Any = setup.model.get_model_object("latent_format")
    scale, whole, found = float(latent_format.scale_factor), chain(count), []
    for name, recipe, way in tqdm([(ALONE, None, ANEW), *ways], desc="turns", leave=False):
        parts: list[list[_State]] = []
        for part in batches(count, batch):
            seeded = replace(setup, seed=setup.seed + part.start)
            parts.append(list(_states(seeded, [task[part] for task in whole], recipe, way)))
        for turn, states in enumerate(zip(*parts, strict=True), 1):
            task, image = whole[turn - 1], torch.cat([state.image for state in states])
            latents, shown = torch.cat([state.latents for state in states]), tasks.show_scenes(task.edited, image)
            found.append(
                Kept(
                    way=name,
                    turn=turn,
                    success=float("nan") if recipe is None else report.share(shown),
                    background_psnr=metrics.mean_psnr(image, task.source, task.kept),
                    latent=_largest(latents, setup.encode(task.source), whole, scale),
                    rows=sum(s.rows * len(s.image) for s in states) / count,
                )
            )
    return found


def tables(found: Sequence[Kept]) -> str:
    """A table for each quantity, a line for each way, a column for each turn, as Markdown."""
    numbers = sorted({kept.turn for kept in found})
    edits = [kept for kept in found if kept.success == kept.success]
    quantities = (
        ("all edits so far shown", edits, lambda kept: report.percent(kept.success)),
        ("background PSNR", found, lambda kept: f"{kept.background_psnr:.1f} dB"),
        ("largest change of a kept latent", found, lambda kept: f"{kept.latent:.1e}" if kept.latent else "0"),
        ("UNet evaluations", edits, lambda kept: f"{kept.rows:g}"),
    )
    made = []
    for title, rows, cell in quantities:
        lines = [[way, *(cell(k) for k in rows if k.way == way)] for way in dict.fromkeys(k.way for k in rows)]
        made.append(report.markdown([title, *(f"turn {number}" for number in numbers)], lines))
    return "\n".join(made)
