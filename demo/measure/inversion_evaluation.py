"""How well each inversion finds its image again under guidance, and what it costs: `evaluate.py --inversions`.

Costs are counted; what they take in time is `benchmark.py inversions`'s to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from machine.pack import pack_module
from measure import report
from measure.methods import Setup
from scenes import metrics, tasks
from torch import Tensor
from tqdm import tqdm

cost_of = pack_module("host.cost").measured
reconstruct = pack_module("inversion.reconstruct").reconstruct
DDIMInversion = pack_module("inversion.ddim_inversion").DDIMInversion
FixedPointInversion = pack_module("inversion.fixed_point").FixedPointInversion
NegativePromptInversion = pack_module("inversion.negative_prompt").NegativePromptInversion
NullTextInversion = pack_module("inversion.null_text").NullTextInversion

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


@dataclass(frozen=True)
class Maker:
    """One way to invert: what improves DDIM's inversion, one after the other, and for which guidance.

    Attributes:
        improvements: made as the pack's `Improvement`s are.
        per_guidance: made anew for each guidance that is measured; otherwise once, at guidance 1.
    """

    improvements: tuple[Any, ...] = ()
    per_guidance: bool = False


MAKERS = {
    "DDIM": Maker(),
    "fixed point": Maker((FixedPointInversion(),)),
    "fixed point, guided": Maker((FixedPointInversion(),), per_guidance=True),
    "negative prompt": Maker((NegativePromptInversion(),)),
    "fixed point + negative prompt": Maker((FixedPointInversion(), NegativePromptInversion())),
    "null text": Maker((NullTextInversion(checkpointing=False),), per_guidance=True),
    "null text, source start": Maker(
        (NullTextInversion(warm_start=True, keep_best=True, checkpointing=False),), per_guidance=True
    ),
}
"""By the name in the table. Direct inversion needs no row: edits read the trajectory, whose end is the image itself."""


def _made(setup: Setup, maker: Maker, image: tuple[Tensor, list[str]], guidance: float) -> tuple[Any, Any, int]:
    """An inversion of latents and captions, what it cost and its backward evaluations; DDIM's own part included."""
    latents, captions = image
    backward = 0
    with cost_of(setup.model) as (counted, cost):
        found = DDIMInversion(setup.steps)(counted, {"samples": latents}, setup.text(captions)).inversion
        for improvement in maker.improvements:
            better = improvement(counted, found, setup.text([""]), guidance if maker.per_guidance else 1.0)
            found, backward = better.inversion, backward + better.cost.backward
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
            if maker.per_guidance or number >= len(known):
                known[number:] = [_made(setup, maker, (latents, part.source_captions), guidance)]
            found, cost, backward = known[number]
            again = reconstruct(setup.model, found, guidance, setup.text([""]))
            images.append(setup.decode(again.latent))
            errors.append(again.errors[-1] * len(part))
            costs.append((cost.forward, backward))
        forward, backward = (sum(column) / len(task) for column in zip(*costs, strict=True))
        made = torch.cat(images)
        psnr = metrics.mean_psnr(made, task.source)
        row = Reconstructed(name, guidance, psnr, sum(errors) / len(task), forward, backward)
        yield row, made
        if maker.per_guidance:
            known.clear()


def table(rows: Sequence[Reconstructed]) -> str:
    """All rows as Markdown."""
    header = ["inversion", "guidance", "PSNR", "latent error", "UNet evaluations", "backward"]
    cells = [
        [
            row.inversion,
            f"{row.guidance:g}",
            f"{row.psnr:.1f} dB",
            f"{row.latent_error:.4f}",
            f"{row.forward:g}",
            f"{row.backward:g}",
        ]
        for row in rows
    ]
    return report.markdown(header, cells)


def evaluate(setup: Setup, count: int, batch: int, folder: Path, names: Sequence[str] = ()) -> list[Reconstructed]:
    """Measure all inversions on held-out scenes; prints the table, and writes a plot and a sheet of pictures."""
    task = tasks.make_task("recolour", count)
    trip = setup.decode(setup.encode(task.source))
    best = metrics.mean_psnr(trip, task.source)
    rows = [Reconstructed(ROUND_TRIP, guidance, best, 0.0, 0, 0) for guidance in GUIDANCES]
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
