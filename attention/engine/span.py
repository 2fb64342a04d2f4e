"""Where a sampler run starts and ends on the inversion's schedule, and what it leaves for one that goes on from there.

Two runs in a row are one run: KSampler (Advanced) with start and end steps, split sigmas, another model for the last
steps. The second one is known by the latent that it begins with, which is the first one's last.
"""

from __future__ import annotations

import math
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ...host.guider import noise_like
from ...host.remarks import Kind, remark
from ...inversion.record import MATCH, Inversion
from .control import Control
from .plan import Plan
from .results import Results, relative_distance
from .run import Run

ALIKE = 1e-3
"""Relative difference up to which a run's first latent is another one's last: what half precision may have left."""


@dataclass(frozen=True, eq=False)
class Ended:
    """How a run ended.

    Attributes:
        sigma: the level that it ended at.
        whole: whether no step of the schedule is left.
        seed: of the run that it was, from its first step on.
        states: of its controls, for those that go on; they are forgotten with their nodes.
    """

    sigma: float
    whole: bool
    seed: int
    states: MutableMapping[Control, Any] = field(default_factory=WeakKeyDictionary)


_ENDED: Results[Ended] = Results("No run has ended yet.", runs=16)


@dataclass(frozen=True, eq=False)
class Span:
    """A run's part of the schedule.

    Attributes:
        noise, latent, sigmas: what the host's sampler is given, the first two (B, C, h, w) as a LATENT carries them.
        resumes: whether it goes on where another run ended.
        before: how that one ended, if it was a run of the pack and is still known.
    """

    noise: Tensor
    latent: Tensor
    sigmas: Tensor
    resumes: bool = False
    before: Ended | None = None


def span_of(plan: Plan, latent_format: Any, noise: Tensor, latent: Tensor, sigmas: Tensor, seed: int) -> Span:
    """The part of the schedule that a sampler is to run.

    Args:
        noise, latent, sigmas, seed: as the host's sampler node gives them.

    Raises:
        ValueError: a model of Edit Setup's, and a start that is not on its schedule, or no step between start and end.
    """
    if plan.inversion is not None and plan.schedule is not None:
        return _pinned(plan, plan.inversion, latent_format, noise, latent, sigmas, seed)
    before, first = _ENDED.found(latent, ALIKE), float(sigmas[0])
    if before is not None and not before.whole and _same(before.sigma, first):
        return Span(noise, latent, sigmas, True, before)
    return Span(noise, latent, sigmas, _from_elsewhere(plan, latent_format, noise, latent, sigmas.tolist()))


def _from_elsewhere(plan: Plan, latent_format: Any, noise: Tensor, latent: Tensor, sigmas: Sequence[float]) -> bool:
    """Whether a run begins inside of the schedule with a latent that is neither noised anew nor the image's own."""
    inversion, first = plan.inversion, sigmas[0]
    if inversion is None or first <= sigmas[-1] or bool(noise.any()) or inversion.level(first) is None:
        return False
    own = latent_format.process_out(inversion.at(first))
    return not (_same(first, inversion.sigmas[-1]) or _alike(own, latent))


def _pinned(
    plan: Plan, inversion: Inversion, latent_format: Any, noise: Tensor, latent: Tensor, sigmas: Tensor, seed: int
) -> Span:
    """A run of Edit Setup's model, which keeps to its schedule in whatever steps the sampler was given.

    What starts with the last latent of another run goes on there. Without added noise a start on the schedule is
    honoured, from the given latent or, with Edit Setup's own, from the image's trajectory. All else starts at the
    inverted noise. It ends at the level nearest to the sampler's last one.
    """
    schedule, first = plan.schedule or (0.0,), float(sigmas[0])
    inside = not bool(noise.any()) and first < schedule[0] * (1 - MATCH)
    before = _ENDED.found(latent, ALIKE)
    if before is not None and before.whole:
        if inside:
            raise ValueError(
                "Set return_with_leftover_noise of the first sampler to enable (or give the second one low_sigmas of "
                f"Split Sigmas): this run is to begin at sigma {first:.3f}, but its latent is that of a run which went "
                "to the end of the schedule."
            )
        before = None
    own = _own_start(plan, latent_format, latent, 0)
    resumes = before is not None or (inside and not _alike(own, latent))
    if resumes:
        start, place = latent, _place(schedule, first if before is None else before.sigma)
        if place is None:
            raise _off(plan, first if before is None else before.sigma)
    else:
        place = _start(schedule, first) if inside else 0
        start = own
        if plan.variation is not None:
            start = _own_start(plan, latent_format, latent, place, noise if noise.any() else noise_like(latent, seed))
        elif place:
            start = _own_start(plan, latent_format, latent, place)
    if inversion.prediction == "flow":
        if resumes or place or float(sigmas[-1]) > schedule[-1]:
            raise ValueError(
                "Let one sampler do all steps, from Edit Setup's start to its end: on transformers a run cannot start "
                "or end inside the schedule yet. Edit Setup's denoise starts later."
            )
        drawn = noise if noise.any() else noise_like(latent, seed)
        x = _begun(plan, inversion, schedule[0], len(latent), drawn).to(start).expand_as(start)
        # The host multiplies a flow's latent by 1 - sigma, so that nothing would be left of it at the noisiest level.
        return Span(x / schedule[0], torch.zeros_like(start), sigmas.new_tensor(schedule))
    end = _end(schedule, place, float(sigmas[-1]))
    return Span(noise.new_zeros(start.shape), start, sigmas.new_tensor(schedule[place : end + 1]), resumes, before)


def _start(schedule: Sequence[float], first: float) -> int:
    """Where on the schedule a run of Edit Setup's own latent starts that is to start inside."""
    place = _place(schedule, first)
    if place is None:
        remark(
            Kind.IGNORED,
            f"Use Edit Setup's denoise to start later: the sampler's start at sigma {first:.3f} is not on the "
            "inversion's schedule, and the run starts at the inverted noise.",
        )
    return place or 0


def _own_start(plan: Plan, latent_format: Any, like: Tensor, place: int, noise: Tensor | None = None) -> Tensor:
    """Edit Setup's start at a level of its schedule, as a LATENT carries it.

    Args:
        noise: what a variation mixes in; None takes that of Edit Setup's own latent.

    Raises:
        ValueError: the sampler's latent is of another shape.
    """
    inversion, schedule = plan.inversion, plan.schedule
    if inversion is None or schedule is None:
        raise ValueError("Connect Edit Setup's model to the sampler: this one has a schedule without an inversion.")
    start = latent_format.process_out(_begun(plan, inversion, schedule[place], len(like), noise))
    if start.shape[0] == 1:
        start = start.expand(like.shape[0], *start.shape[1:])
    if start.shape != like.shape:
        raise ValueError(
            f"The sampler's latent has shape {tuple(like.shape)}, but the inverted image's has {tuple(start.shape)}. "
            "Connect Edit Setup's latent to the sampler."
        )
    return start.to(like)


def _begun(plan: Plan, inversion: Inversion, sigma: float, batch: int, noise: Tensor | None) -> Tensor:
    """What Edit Setup begins with at a noise level, (1 or B, C, h, w) in the network's scale."""
    variation = plan.variation
    return inversion.at(sigma) if variation is None else variation.start(inversion, sigma, batch, noise)


def _end(schedule: Sequence[float], start: int, last: float) -> int:
    """Where on the schedule a run ends: at the level nearest to the sampler's last one.

    Raises:
        ValueError: no step lies between start and end.
    """
    if last <= schedule[-1] * (1 + MATCH):
        return len(schedule) - 1
    end = min((i for i, sigma in enumerate(schedule) if sigma > 0), key=lambda i: abs(math.log(schedule[i] / last)))
    if end <= start:
        raise ValueError(
            f"Let this sampler end later: from sigma {schedule[start]:.3f}, where it starts, to {last:.3f}, where it "
            f"is to end, the inversion's schedule of {len(schedule) - 1} steps has none."
        )
    if not _same(schedule[end], last):
        remark(
            Kind.IGNORED,
            f"Go on with Edit Setup's model in the next sampler: this one's end at sigma {last:.3f} is not on the "
            f"inversion's schedule, and the run ends at {schedule[end]:.3f}.",
        )
    return end


def _off(plan: Plan, sigma: float) -> ValueError:
    schedule = plan.schedule or (0.0,)
    return ValueError(
        "Split Edit Setup's sigmas (Split Sigmas, for SamplerCustomAdvanced) for both samplers, or run Edit Setup's "
        f"model in both: this one goes on at sigma {sigma:.4f}, which is no level of its schedule of "
        f"{len(schedule) - 1} steps from {schedule[0]:.3f} to {schedule[-1]:.3f}. To start at the inverted noise, "
        "connect Edit Setup's latent."
    )


def _place(schedule: Sequence[float], sigma: float) -> int | None:
    """Which level of a schedule this is, if it is one that a step starts from."""
    return next((i for i, level in enumerate(schedule[:-1]) if _same(level, sigma)), None)


def _same(one: float, two: float) -> bool:
    return abs(one - two) <= MATCH * max(one, two)


def _alike(one: Tensor, two: Tensor) -> bool:
    return one.shape[1:] == two.shape[1:] and relative_distance(one.expand_as(two), two) <= ALIKE


def leave(run: Run, latent: Tensor) -> None:
    """Keep how a run ended under its last latent (B, C, h, w), for one that goes on from there."""
    ended = Ended(run.sigmas[-1], run.whole, run.seed)
    if not ended.whole:
        ended.states.update({c: state for c, state in run.states.items() if type(c).resumed is not Control.resumed})
    _ENDED.keep(latent, ended)
