"""Mask refinement (CPAM section 3.5): the target mask follows the shape that the prompt takes while it is drawn.

In the first steps the given target mask holds. Then the cross-attention maps of the prompt's words, summed over
layers and steps, are cut at a threshold after every step, and what they select is the target mask of the next one.
The drawing's own self-attention may sharpen them first; that is not the paper's, whose maps come from wider layers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from copy import copy
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...host.arriving import Arriving
from ..engine.call import AttentionCall
from ..engine.control import missing_steps
from ..engine.moment import Moment, savable
from ..maps.heat import min_max, sharpen
from ..maps.probabilities import largest_share
from ..maps.recorder import MeanMap
from ..maps.seen import itself_of, words_of
from ..maps.sizes import add_tokens
from .cells import for_batch, grow, resize
from .refinement import Refinement


class Target:
    """The target mask of the moment in one run, and what is derived from it."""

    def __init__(self, given: Tensor, refinement: Refinement | None) -> None:
        self._mask, self._given, self._refinement = given, given, refinement
        self._chosen: tuple[int, Arriving, Tensor | None] | None = None
        self._by_step: dict[int, Tensor] = {}
        self._derived: dict[Hashable, Any] = {}
        self._words: Tensor | None = None
        self._own: MeanMap | None = None
        self._within: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """(M, H, W) bool on the CPU; the given one until the first refined mask replaces it."""
        self._settle()
        return self._mask

    @property
    def by_step(self) -> dict[int, Tensor]:
        """The refined masks (B, h, w) so far, by the step that each ended."""
        self._settle()
        return self._by_step

    def _settle(self) -> None:
        """Take in the mask that the last step made, if it made one."""
        if self._chosen is not None:
            (step, chosen, reachable), self._chosen = self._chosen, None
            self._mask = savable(lambda: usable(chosen.get(), self._given, reachable))
            self._by_step[step] = self._mask

    def resumed(self, run: Moment, before: Target | None) -> Target:
        """The target of a run that goes on where another one ended: what it adds is not added to that one's.

        Raises:
            ValueError: refined masks hold by now, and the maps that they are made of are not known.
        """
        if self._refinement is None:
            return self
        if before is None:
            if run.step >= self._refinement.first(run):
                raise missing_steps(run, "Refine Mask", "the attention maps")
            return self
        before._settle()
        found = copy(before)
        found._by_step, found._derived = dict(before._by_step), {}
        if before._own is not None:
            found._own = replace(before._own, values=before._own.values.clone())
        return found

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` returns, computed when first asked for since the mask was last replaced."""
        if key not in self._derived:
            self._derived[key] = savable(make)
        return self._derived[key]

    def look(self, kind: str, call: AttentionCall) -> None:
        """Add one layer's maps of the conditional rows, as if no pixel were kept from the prompt.

        Args:
            kind: "cross" for the words' maps, "self" for those that sharpen them.
        """
        refinement = self._refinement
        if refinement is None or call.run.step < refinement.first(call.run) - 1:
            return
        last = kind == "cross" and call.layer == refinement.word_layers(call.run.family)[-1]
        if refinement.released and call.run.step < refinement.first(call.run) and not last:
            return  # the first mask is the last layer's
        add = {"cross": self._add_words, "self": self._add_own}[kind]
        for chunk in (i for i, conditional in enumerate(call.conditional) if conditional):
            add(refinement, call, chunk)
        if refinement.released and last and self._words is not None:
            self._refine(refinement, self._words, call.run)

    def _add_words(self, refinement: Refinement, call: AttentionCall, chunk: int) -> None:
        """The words' maps over their maximum, nearest at the latent's size."""
        heat = words_of(call, chunk, refinement.columns, refinement.length)
        heat = heat.mean(-1).unflatten(1, call.shape)
        heat = F.interpolate(heat[:, None], size=call.run.size, mode="nearest")[:, 0]
        most = heat.amax((1, 2), keepdim=True)
        if refinement.released:
            most = words_of(call, chunk, refinement.columns, refinement.length, largest_share)
        heat = heat / most.clamp(min=1e-12)
        self._words = heat if self._words is None else self._words + heat

    def _add_own(self, refinement: Refinement, call: AttentionCall, chunk: int) -> None:
        """Which pixels of the drawing look at which; only their proportions matter."""
        values = itself_of(call, chunk)
        if self._own is None:
            self._own = MeanMap(values, call.shape, 1)
        else:
            self._own = MeanMap(*add_tokens(self._own.values, self._own.shape, values, call.shape, own=True), 1)

    def step_done(self, run: Moment) -> None:
        """Replace the mask by the refined one, if this step's maps make one."""
        if self._refinement is not None and self._words is not None and not self._refinement.released:
            self._refine(self._refinement, self._words, run)

    def _refine(self, refinement: Refinement, heat: Tensor, run: Moment) -> None:
        """Make the mask of the maps so far."""
        if self._own is not None:
            sharp = sharpen(heat, self._own, 1)
            heat = F.interpolate(sharp[:, None], size=run.size, mode="bilinear")[:, 0]
        chosen = Arriving(min_max(heat) > refinement.threshold)
        self._chosen = (run.step, chosen, self._reachable(run, refinement.reach))
        self._derived.clear()

    def _reachable(self, run: Moment, reach: float) -> Tensor | None:
        """Where the refined mask may be, at the latent's size; None for everywhere."""
        if reach >= 1:
            return None
        if self._within is None:
            self._within = savable(lambda: resize(grow(self._given, reach), run.size, "any"))
        return self._within


def usable(chosen: Tensor, given: Tensor, reachable: Tensor | None = None) -> Tensor:
    """What a threshold selects, as a target mask.

    Args:
        chosen: (B, h, w) bool on the CPU.
        given: (1 or B, H, W) bool, what an image has whose map selects nothing or everything.
        reachable: (1 or B, h, w) bool, outside of which nothing is selected; None for everywhere.

    Returns:
        (B, h, w) bool on the CPU.
    """
    if reachable is not None:
        chosen = chosen & reachable
    share = chosen.float().mean((1, 2))
    useless = ((share == 0) | (share == 1))[:, None, None]
    if not useless.any():
        return chosen
    fallback = resize(given, (chosen.shape[1], chosen.shape[2]))
    return torch.where(useless, for_batch(fallback, len(chosen), "edit mask"), chosen)
