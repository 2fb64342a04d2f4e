"""MAG-Edit's loop (Algorithm 1, lines 1 to 7): the latent under the masks goes down the slope of all parts' losses."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ....host.gradients import check_finite, finite, plain
from ....host.progress import show
from ...engine.control import Slopes
from ...engine.reading import Maps
from ...engine.run import Run
from ...engine.slopes import Slope
from ...masks.cells import for_batch
from ...words.lines import split_words
from .constraints import normalised
from .parts import Guided, Negative, Part
from .readings import Readings

log = logging.getLogger(__name__)


def _tell(part: Part, run: Run) -> None:
    """Say what a step's iterations did, on the node that runs; in the log what came of all, after the last."""
    if part.curve.points:
        show(f"MAG-Edit: {part.curve.latest()}")
    if run.sigma <= run.states[part].last:
        log.log(logging.INFO if part.curve.worked() else logging.WARNING, "MAG-Edit: %s", part.curve.report())


@dataclass
class _Open:
    """A part in a step's iterations.

    Attributes:
        share: of the guidance, times its scale.
        images: (B,) bool, which images it still guides; each is left when its own gain is too small.
        ratio: (B,) at the iteration before.
        any: whether there are such images, as far as has been read.
    """

    share: float
    images: Tensor
    ratio: Tensor | None = None
    any: bool = True

    def tell_any(self, any_left: float) -> None:
        """What has been read of `images`."""
        self.any = bool(any_left)


def guided(parts: Sequence[Part], run: Run, x: Tensor, network: Slopes) -> Tensor:
    """x (B, C, h, w) in the sampler's scale after this step's updates; outside the masks it stays bit for bit.

    With z = x / sqrt(1 + sigma^2), z - s sigma dL/dz is x - s sigma (1 + sigma^2) dL/dx.

    The device is waited for once in an iteration, where the images that are left decide on the next way back; an
    update is checked there too, one iteration late, and the last one at the end.

    Raises:
        ValueError: a word that cannot be guided, or a slope that is not finite or zero.
    """
    for part in parts:
        _check_copied(part, run)
    layers = sorted({layer for p in parts for layer in p.layers(run.family)}, key=lambda layer: layer.index)
    state: Guided = run.states[parts[0]]
    key = (*parts, tuple(x.shape), x.device)
    inside = state.cached(key, lambda: union(parts, tuple(x.shape)).to(x.device))
    weights = normalised([p.weight for p in parts])
    length = run.sigma * (1 + run.sigma**2)
    with network.slopes(layers, any(p.checkpointing for p in parts)) as slope:
        latent, everything = plain(x), torch.ones(len(x), dtype=torch.bool, device=x.device)
        readings = Readings()
        waiting = {p: _Open(w * p.scale, everything) for p, w in zip(parts, weights, strict=True)}
        for iteration in range(max(p.iterations for p in parts)):
            waiting = {p: of for p, of in waiting.items() if iteration < p.iterations}
            found = slope(latent, partial(_together, waiting, run, iteration, readings)) if waiting else None
            if found is None:
                break
            for part, of in waiting.items():
                if part.negative is not None:
                    found = found - of.share * _away(part, part.negative, of, run, latent, slope)
            readings.ask([finite([found])], check_finite)
            readings.ask([(found * inside).any()], partial(_check_slope, tuple(waiting)))
            latent = torch.where(inside, latent - length * found, latent)
        readings.read()
    for part in parts:
        _tell(part, run)
    return latent


def _together(waiting: dict[Part, _Open], run: Run, iteration: int, readings: Readings, maps: Maps) -> Tensor | None:
    """Eq 5: the parts' losses, each with its share; parts without an image left to guide are taken out."""
    losses = [_loss(part, of, run, maps, iteration, readings) for part, of in waiting.items()]
    if iteration > 0:  # no image is left before the first update
        readings.read()
    for part in [part for part, of in waiting.items() if not of.any]:
        del waiting[part]
    return torch.stack(losses).sum() if waiting else None


def _loss(part: Part, of: _Open, run: Run, maps: Maps, iteration: int, readings: Readings) -> Tensor:
    """A part's share of the loss, summed over the images that it still guides: each has its own gradient.

    An image is left when the last update has raised the words' share of attention too little for another one. The
    share tells, not the loss: of a share of a few per cent, (1 - r)^2 hardly moves.
    """
    loss, ratio = part.loss(run, maps, part.words)
    readings.ask([loss.mean(), ratio.mean()], partial(part.curve.add, run.step, iteration))
    now = ratio.detach()
    if of.ratio is not None and part.gain > 0:
        of.images = of.images & ~((of.ratio > 0) & (now - of.ratio < part.gain * of.ratio))
        readings.ask([of.images.any()], of.tell_any)
    of.ratio = now
    return of.share * (loss * of.images).sum()


def _away(part: Part, negative: Negative, of: _Open, run: Run, latent: Tensor, slope: Slope) -> Tensor:
    """Eq 3's second term: the weighted slope of the negative words' loss, in a pass of its own."""

    def loss(maps: Maps) -> Tensor:
        return (part.loss(run, maps, negative.words)[0] * of.images).sum()

    found = slope(latent, loss, part.negative_role, part)
    return torch.zeros_like(latent) if found is None else negative.weight * found


def _check_copied(part: Part, run: Run) -> None:
    """Raise ValueError for a word whose attention is the source's: the edit cannot change it (S* without S)."""
    for index, word in enumerate(part.words):
        if any(control.copies(run, run.states[control], word) for control in run.acting.maps):
            named = split_words(part.curve.name)
            raise ValueError(
                f"Guidance cannot reach {named[index] if index < len(named) else part.curve.name!r}: Prompt-to-Prompt "
                "copies its attention from the source prompt, whatever the edit. Name words that are new in the "
                "target prompt, or use refinement instead of word swap."
            )


def _check_slope(parts: Sequence[Part], any_inside: float) -> None:
    """Raise ValueError if no change of the latent under the mask can change what is asked for."""
    if not any_inside:
        names = ", ".join(repr(p.curve.name) for p in parts)
        raise ValueError(
            f"Guidance cannot reach {names}: under the mask nothing changes their attention. A spatial ratio needs a "
            "mask that leaves some of the image out, on CPAM some of its target mask; and no other node may put the "
            "source's attention in its place."
        )


def union(parts: Sequence[Part], shape: tuple[int, ...]) -> Tensor:
    """Where any part acts, on a latent of shape (B, C, h, w): (B, 1, h, w) bool."""
    cells = [for_batch(part.cells(shape), shape[0], "mask of MAG-Edit") for part in parts]
    return torch.stack(cells).any(0)[:, None]
