"""How well each inversion finds its image again under guidance, and what it costs: `evaluate.py --inversions`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from machine.pack import pack_module
from measure import report
from measure.methods import Setup
from scenes import metrics, tasks
from torch import Tensor
from tqdm import tqdm

ddim = pack_module("inversion.ddim_inversion")
cost_of = pack_module("host.cost").measured
null_text = pack_module("inversion.null_text")
fixed_point = pack_module("inversion.fixed_point")
negative_prompt = pack_module("inversion.negative_prompt")

GUIDANCES = (1.0, 3.0, 7.5)
ROUND_TRIP = "autoencoder alone"


@dataclass(frozen=True)
class Reconstructed:
    """How well one inversion reconstructs at one guidance."""

    inversion: str
    guidance: float
    psnr: float
    """dB to the image, by plain guided DDIM sampling from the inverted noise."""
    latent_error: float
    """Relative error of the final latent."""
    forward: float
    """UNet evaluations per image of making the inversion, counted."""
    backward: float
    """Of these, evaluations that went back through the UNet too."""
    seconds: float
    """Per image, of making the inversion."""


@dataclass(frozen=True)
class Maker:
    """One way to invert: what it makes of DDIM's inversion, and whether it depends on the guidance."""

    make: Callable[[Setup, Any, float], tuple[Any, int]]
    guided: bool = False


def _null_text(settings: dict[str, Any]) -> Callable[[Setup, Any, float], tuple[Any, int]]:
    def make(setup: Setup, inversion: Any, guidance: float) -> tuple[Any, int]:
        chosen = null_text.Settings(guidance=guidance, checkpointing=False, **settings)
        found, told = null_text.null_text_inversion(setup.model, inversion, setup.text([""]), chosen)
        return found, told.cost.backward

    return make


def _fixed(setup: Setup, inversion: Any, guidance: float) -> tuple[Any, int]:
    return fixed_point.fixed_point_inversion(setup.model, inversion, (guidance, setup.text([""])))[0], 0


def _negative(inversion: Any) -> Any:
    return negative_prompt.negative_prompt_inversion(inversion, None, 0.0)


MAKERS = {
    "DDIM": Maker(lambda setup, inversion, guidance: (inversion, 0)),
    "fixed point": Maker(lambda setup, inversion, guidance: _fixed(setup, inversion, 1.0)),
    "fixed point, guided": Maker(_fixed, guided=True),
    "negative prompt": Maker(lambda setup, inversion, guidance: (_negative(inversion), 0)),
    "fixed point + negative prompt": Maker(
        lambda setup, inversion, guidance: (_negative(_fixed(setup, inversion, 1.0)[0]), 0)
    ),
    "null text": Maker(_null_text({}), guided=True),
    "null text, source start": Maker(_null_text({"warm_start": True, "keep_best": True}), guided=True),
}
"""By the name in the table. Direct inversion needs no row: edits read the trajectory, whose end is the image itself."""


def _made(setup: Setup, maker: Maker, image: tuple[Tensor, list[str]], guidance: float) -> tuple[Any, Any, int]:
    """An inversion of latents and captions, what it cost and its backward evaluations; DDIM's own part included."""
    latents, captions = image
    with cost_of(setup.model) as (counted, cost):
        here = replace(setup, model=counted)
        plain = ddim.ddim_inversion(counted, {"samples": latents}, setup.text(captions), setup.steps, 0)
        found, backward = maker.make(here, plain, guidance)
    return found, cost, backward


def measure(setup: Setup, name: str, task: tasks.Task, batch: int) -> Iterator[tuple[Reconstructed, Tensor]]:
    """One inversion at every guidance on a task's sources: the row, and the reconstructions (B, 3, S, S)."""
    maker = MAKERS[name]
    known: list[tuple[Any, Any, int]] = []
    for guidance in GUIDANCES:
        if guidance == 1.0 and name.startswith("null text"):
            continue  # without guidance the null text has no weight
        images, errors, costs = [], [], []
        for number, start in enumerate(range(0, len(task), batch)):
            part = task[start : start + batch]
            latents = setup.encode(part.source)
            if maker.guided or number >= len(known):
                known[number:] = [_made(setup, maker, (latents, part.source_captions), guidance)]
            found, cost, backward = known[number]
            again = ddim.reconstruct(setup.model, found, guidance, setup.text([""]))
            images.append(setup.decode(again.latent))
            errors.append(again.errors[-1] * len(part))
            costs.append((cost.forward, backward, cost.seconds))
        forward, backward, seconds = (sum(column) / len(task) for column in zip(*costs, strict=True))
        made = torch.cat(images)
        row = Reconstructed(
            name, guidance, metrics.mean_psnr(made, task.source), sum(errors) / len(task), forward, backward, seconds
        )
        yield row, made
        if maker.guided:
            known.clear()


def table(rows: Sequence[Reconstructed]) -> str:
    """All rows as Markdown."""
    header = ["inversion", "guidance", "PSNR", "latent error", "UNet evaluations", "backward", "seconds"]
    cells = [
        [
            row.inversion,
            f"{row.guidance:g}",
            f"{row.psnr:.1f} dB",
            f"{row.latent_error:.4f}",
            f"{row.forward:g}",
            f"{row.backward:g}",
            f"{row.seconds:.2f}",
        ]
        for row in rows
    ]
    return report.markdown(header, cells)


def evaluate(setup: Setup, count: int, batch: int, folder: Path, names: Sequence[str] = ()) -> list[Reconstructed]:
    """Measure all inversions on held-out scenes; prints the table, and writes a plot and a sheet of pictures."""
    task = tasks.make_task("recolour", count)
    trip = setup.decode(setup.encode(task.source))
    best = metrics.mean_psnr(trip, task.source)
    rows = [Reconstructed(ROUND_TRIP, guidance, best, 0.0, 0, 0, 0.0) for guidance in GUIDANCES]
    columns = {"image": task.source[:8], ROUND_TRIP: trip[:8]}
    for name in tqdm(names or list(MAKERS), desc="inversions", leave=False):
        for row, images in measure(setup, name, task, batch):
            rows.append(row)
            columns[f"{name} {row.guidance:g}"] = images[:8]
    print(table(rows))
    report.save_sheet(folder / "inversions.png", columns, task.source_captions[:8])
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        series.setdefault(row.inversion, []).append((row.guidance, row.psnr))
    report.save_plot(folder / "inversions plot.png", series, "guidance", "PSNR of the reconstruction, dB")
    return rows


def as_results(rows: Sequence[Reconstructed]) -> list[dict[str, Any]]:
    """Rows for the results file."""
    return [asdict(row) for row in rows]
