"""Null-text inversion (Mokady et al. 2023, section 3.2 and the official code): a null text for every step.

Guidance drives sampling away from the trajectory. Here the unconditional text of each step is optimised, by
gradients through the UNet, so that a guided step lands on the trajectory's next latent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..host.conditioning import Conditioning, at_step, of_images, source_conditioning, with_states
from ..host.cost import Cost, measured
from ..host.gradients import check_finite, differentiable, finite, for_gradients, gradient, plain
from ..host.guider import HostRun, OwnSampler, cfg_guider, run_sampler
from ..host.models import latent_of, per_image
from .improvement import Found, Improvement
from .learned import without_learned
from .reconstruct import relative_errors
from .record import Inversion
from .steps import Predict, alpha_of, ddim_step, to_eps
from .walk import raw_prediction

PAPER_STEPS = 50
"""Steps by which the official code counts its learning rate and its early stop."""
PAPER_GUIDANCE = 7.5
"""The official code's guidance scale."""

WithNull = Callable[[Tensor, float, Tensor, Tensor], Tensor]
"""(z (R, C, h, w), sigma, null text (R, L, C), which images (R,)) to the null text's noise (R, C, h, w)."""
Evaluate = Callable[[list[dict[str, Any]], Tensor, float], Tensor]
"""(processed conditionings, z (B, C, h, w), sigma) to their raw prediction (B, C, h, w)."""


@dataclass(frozen=True)
class Step:
    """What was found for one step.

    Attributes:
        states: (B, L, C) null text. z: (B, C, h, w), the latent that the guided step lands on.
        losses: per inner iteration (images still open), mean squared error before its update.
        final: (B,) loss of `states`.
    """

    states: Tensor
    z: Tensor
    losses: tuple[tuple[float, ...], ...]
    final: tuple[float, ...]


def optimise(
    conditional: Predict,
    unconditional: WithNull,
    trajectory: Sequence[Tensor],
    levels: tuple[Sequence[float], int, str],
    states: Tensor,
    settings: NullTextInversion,
    guidance: float = PAPER_GUIDANCE,
) -> Iterator[Step]:
    """Null texts from the noisiest step to the cleanest.

    Args:
        conditional, unconditional: the network with either text; no gradient is asked of the first.
        trajectory: latents (B, C, h, w) in DDPM scale, noisy to clean.
        levels: their sigmas, the number of DDIM steps by the papers' count, and "eps" or "v".
        states: (B, L, C), the text to begin with.
        settings: the updates' rule. guidance: scale at which sampling shall land on the trajectory.
    """
    sigmas, steps, kind = levels
    z = trajectory[0]
    for number, ((high, low), target) in enumerate(zip(pairwise(sigmas), trajectory[1:], strict=True)):
        with torch.no_grad():
            eps_c = to_eps(conditional(z, high), z, alpha_of(high), kind)

        def landing(
            eps_u: Tensor, images: Tensor, z: Tensor = z, eps_c: Tensor = eps_c, high: float = high, low: float = low
        ) -> Tensor:
            eps = eps_u + guidance * (eps_c[images] - eps_u)
            return ddim_step(z[images], eps, alpha_of(high), alpha_of(low))

        def land(text: Tensor, images: Tensor, z: Tensor = z, high: float = high, landing: Any = landing) -> Tensor:
            out = unconditional(z[images], high, text, images)
            return landing(to_eps(out, z[images], alpha_of(high), kind), images)

        step = _optimise_step(land, target, states, settings, number * PAPER_STEPS / steps)
        yield step
        states, z = states if settings.anew else step.states, step.z


def _optimise_step(
    land: Callable[[Tensor, Tensor], Tensor], target: Tensor, states: Tensor, settings: NullTextInversion, i: float
) -> Step:
    """The inner loop of one step; every image stops by itself, as if it were alone.

    The device is waited for once in an iteration.

    Raises:
        ValueError: a gradient that is not finite.
    """
    text = states.detach().clone().requires_grad_()
    adam = torch.optim.Adam([text], lr=settings.rate(i))
    open_images = torch.arange(len(text), device=text.device)
    best = _Best(text, target)
    losses = []
    for _ in range(settings.inner):
        before = text.detach().clone()
        landed = land(text[open_images], open_images)
        loss = _error(landed, target[open_images])
        (text.grad,) = gradient(loss.sum(), [text])
        still = loss.detach() >= settings.bound(i)
        read = torch.cat([finite([text.grad])[None], loss.detach(), still]).tolist()
        check_finite(read[0])
        losses.append(tuple(read[1 : len(loss) + 1]))
        if settings.keep_best:
            best.offer(open_images, before, landed.detach(), loss.detach())
        adam.step()
        # Adam's momentum would move closed images on.
        updated = torch.zeros(len(text), dtype=torch.bool, device=text.device).index_fill_(0, open_images, True)
        text.data = torch.where(updated[:, None, None], text.data, before)
        left = [place for place, is_open in enumerate(read[len(loss) + 1 :]) if is_open]
        if not left:
            break
        if len(left) < len(open_images):
            open_images = open_images[torch.tensor(left, device=text.device)]
    everything = torch.arange(len(text), device=text.device)
    with torch.no_grad():
        landed = land(text, everything)
        final = _error(landed, target)
    found = text.detach()
    if settings.keep_best:
        best.offer(everything, found, landed, final)
        found, landed, final = best.text, best.landed, best.loss
    return Step(found, landed, tuple(losses), tuple(final.tolist()))


class _Best:
    """The best text of each image so far, where it lands and its loss."""

    def __init__(self, text: Tensor, target: Tensor) -> None:
        self.text, self.landed = text.detach().clone(), torch.zeros_like(target)
        self.loss = torch.full((len(text),), float("inf"), dtype=target.dtype, device=text.device)

    def offer(self, images: Tensor, text: Tensor, landed: Tensor, loss: Tensor) -> None:
        """Take over what is better; text holds all images, the rest those in `images`."""
        better = loss < self.loss[images]
        for kept, new in ((self.text, text[images]), (self.landed, landed), (self.loss, loss)):
            chosen = torch.where(per_image(better, kept), new, kept[images])
            kept.index_copy_(0, images, chosen)


def _error(landed: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each image, (B,)."""
    return (landed - target).square().flatten(1).mean(1)


@dataclass(eq=False)
class NullTextOptimiser(OwnSampler):
    """Optimises the null text along an inversion, from the inverted noise itself.

    Attributes:
        states: (B, L, C), the text to begin with.
        cost: where evaluations with a way back are counted.
        steps: what it has found, on the CPU.
    """

    inversion: Inversion
    states: Tensor
    settings: NullTextInversion
    guidance: float
    cost: Cost
    steps: list[Step] = field(default_factory=list)

    def conditional(
        self, evaluate: Evaluate, positive: list[dict[str, Any]], host: HostRun, options: dict[str, Any]
    ) -> Predict:
        """The prompt's noise; `options` are the model's for calls that are differentiated."""
        return lambda z, sigma: evaluate(at_step(positive, self.inversion.pair(sigma)), z, sigma)

    def run(self, host: HostRun) -> Tensor:
        """Find the steps; the latent stays where it is."""
        inversion, kind = self.inversion, self.inversion.prediction
        positive, negative = (plain(host.guider.conds[key]) for key in ("positive", "negative"))
        with differentiable(host.guider.inner_model, host.options, self.settings.checkpointing) as options:

            def evaluate(conds: list[dict[str, Any]], z: Tensor, sigma: float) -> Tensor:
                denoised = host.evaluate(conds, z * (1 + sigma * sigma) ** 0.5, sigma, options)
                return raw_prediction(denoised, z, sigma, kind)

            def unconditional(z: Tensor, sigma: float, text: Tensor, images: Tensor) -> Tensor:
                out = evaluate(with_states(of_images(negative, images, inversion.batch), text), z, sigma)
                self.cost.backward += len(z) if out.requires_grad else 0
                return out

            found = optimise(
                self.conditional(evaluate, positive, host, options),
                unconditional,
                [plain(z).to(host.start.device) for z in inversion.latents.flip(0)],
                (inversion.schedule, inversion.steps, kind),
                plain(self.states).to(host.start.device),
                self.settings,
                self.guidance,
            )
            for i, step in enumerate(found):
                self.steps.append(replace(step, states=step.states.cpu(), z=step.z.cpu()))
                host.show(i, step.z, step.z)
        return host.start


@dataclass(frozen=True)
class NullTextInversion(Improvement):
    """Adds a null text for every step; the defaults are the official code's.

    The inversion is one of the caption that the edit starts from, and the negative prompt the text to begin with: the
    empty one. The found inversion's errors are |z - z*| / |z*| of guided sampling with it, noisy to clean; its steps
    are `Step`, noisy to clean.

    Attributes:
        inner: Adam updates per step at most (N).
        learning_rate: that of the first step; it falls by half until the 50th.
        early_stop: e; a step ends after the update whose loss was below e (1 + 2 i).
        keep_best: take the best text of the inner loop instead of the last; the loss then never rises.
        warm_start: begin with the source prompt, negative-prompt inversion's solution, instead of the null text.
        checkpointing: compute blocks again on the way back instead of keeping them in memory.
        anew: begin every step with the first text instead of with that of the step before (Dynamic Prompt Learning).

    Raises:
        ValueError: when called, a negative prompt of several parts or none, or quantised weights.
    """

    name: ClassVar[str] = "Null-text inversion"
    inner: int = 10
    learning_rate: float = 1e-2
    early_stop: float = 1e-5
    keep_best: bool = False
    warm_start: bool = False
    checkpointing: bool = True
    anew: bool = False

    def rate(self, i: float) -> float:
        """Learning rate of the i-th of 50 steps."""
        return self.learning_rate * (1 - i / 100)

    def bound(self, i: float) -> float:
        """Loss under which the i-th of 50 steps ends."""
        return self.early_stop * (1 + 2 * i)

    def planned(self, steps: int, batch: int) -> tuple[int, int]:
        """Most evaluations that it can take: (forward, backward)."""
        return (2 + self.inner) * steps * batch, self.inner * steps * batch

    def improve(self, model: Any, inversion: Inversion, negative: Conditioning | None, guidance: float) -> Found:
        """See `Improvement`."""
        positive = source_conditioning(inversion.conditioning)
        start_text = positive if self.warm_start else self._text(negative)
        states = start_text[0][0].detach().float()
        if states.shape[0] not in (1, inversion.batch):
            raise ValueError(
                f"The negative prompt holds {states.shape[0]} texts, but {inversion.batch} image(s) were inverted."
            )
        states = states.expand(inversion.batch, -1, -1)
        most = "at most {} UNet evaluations and {} backward".format(
            *self.planned(len(inversion.sigmas) - 1, len(states))
        )
        with measured(for_gradients(model, self.checkpointing), self.name, most) as (counted, cost):
            optimiser = NullTextOptimiser(inversion, states, self, guidance, cost)
            guider = cfg_guider(counted, positive, start_text, guidance)
            run_sampler(guider, optimiser, latent_of(model, inversion.latents[-1]), inversion.schedule)
        steps = tuple(optimiser.steps)
        found = replace(
            inversion,
            method=f"{inversion.method} + null text",
            errors=relative_errors([inversion.latents[-1], *(step.z for step in steps)], inversion),
            null_states=torch.stack([step.states.float() for step in reversed(steps)]),
            null_options=without_learned(start_text[0][1]),
            null_guidance=guidance,
        )
        return Found(found, cost, steps)

    @staticmethod
    def _text(negative: Conditioning | None) -> Conditioning:
        if negative is None:
            raise ValueError("Null-text inversion begins with the negative prompt; connect an empty prompt.")
        return source_conditioning(negative, "negative prompt of null-text inversion")
