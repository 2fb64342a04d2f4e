"""Mask refinement (CPAM section 3.5): the target mask follows the shape that the prompt takes while it is drawn.

In the first steps the given target mask holds. Then the cross-attention maps of the prompt's words, summed over
layers and steps, are cut at a threshold after every step, and what they select is the target mask of the next one.
The drawing's own self-attention may sharpen them first; that is not the paper's, whose maps come from wider layers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .alignment import find_words
from .map_masks import min_max, sharpen
from .maps import cross_map, self_map
from .masks import for_batch, grow, resize
from .record_maps import MeanMap, sizes_of
from .run import savable

if TYPE_CHECKING:
    from .control import AttentionCall
    from .edit_masks import EditMasks
    from .run import Run
    from .words import Prompt


class RefinedMasks:
    """Where a run leaves its refined masks: those of the last one, and none while another begins."""

    def __init__(self) -> None:
        self._by_step: dict[int, Tensor] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> RefinedMasks:
        return self

    def clear(self) -> None:
        """Forget the last run."""
        self._by_step.clear()

    def keep(self, step: int, mask: Tensor) -> None:
        """Hold the mask (B, h, w) that a step ended on."""
        self._by_step[step] = mask

    @property
    def by_step(self) -> dict[int, Tensor]:
        """Masks (B, h, w) bool of the latent's size by the step, from 0, after which they hold.

        Raises:
            ValueError: nothing was refined.
        """
        if not self._by_step:
            raise ValueError(
                "No masks have been refined yet. Connect Refine Mask's masks to CPAM, and the sampler's latent to "
                "the input 'after', so that it runs first."
            )
        return dict(self._by_step)


@dataclass(frozen=True, eq=False)
class Refinement:
    """How a target mask is refined.

    Attributes:
        columns: positions of the words on the prompt's token axis.
        length: places of that axis.
        start: share of the steps after which refined masks hold (T_m = 5 of 50).
        threshold: of the normalized maps, 0..1 (0.45 in the official runner).
        scales: `Layer.scale` of the layers whose word maps are read; empty for all, as in the official code.
        own_scale: `Layer.scale` of the layers whose self-attention sharpens the words' maps; None for none, as in
            the official code.
        reach: how far a refined mask may go beyond the given one, as `masks.grow` measures it; from 1 on it may be
            anywhere, as in the official code.
        masks: where the refined masks are left.
    """

    columns: tuple[int, ...]
    length: int
    start: float = 0.1
    threshold: float = 0.45
    scales: tuple[int, ...] = ()
    own_scale: int | None = None
    reach: float = 1.0
    masks: RefinedMasks = field(default_factory=RefinedMasks)

    def first(self, run: Run) -> int:
        """The first step, from 0, in which a refined mask holds; at least one step is needed to make it."""
        return max(1, round(self.start * run.steps))

    def prepare(self, run: Run) -> None:
        """Forget the masks of the last run.

        Raises:
            ValueError: no step is left to refine in, or the model has no layers of the sizes that are read.
        """
        self.masks.clear()
        there = {layer.scale for layer in run.family.layers}
        for of, scales in (("map_size", self.scales), ("self_maps", (self.own_scale,))):
            if any(scale and scale not in there for scale in scales):
                raise ValueError(
                    f"{run.family.name} has no attention layers of the size that {of} of Refine Mask asks for; it "
                    f"has {sizes_of(run.family)}."
                )
        if self.first(run) >= run.steps:
            raise ValueError(
                f"Refine Mask is to begin after {self.start:g} of {run.steps} steps; none is left. Lower its start."
            )


def make_refinement(
    prompt: Prompt,
    words: str,
    start: float = Refinement.start,
    threshold: float = Refinement.threshold,
    scales: tuple[int, ...] = Refinement.scales,
    own_scale: int | None = Refinement.own_scale,
    reach: float = Refinement.reach,
) -> Refinement:
    """A refinement that follows words of a prompt.

    Args:
        words: words or phrases, separated by commas; empty takes the whole prompt, as the official runner does.
        start, threshold, scales, own_scale, reach: see `Refinement`.

    Raises:
        ValueError: a phrase is not in the prompt, or the prompt is empty.
    """
    columns = find_words(prompt, words) or prompt.content
    if not columns:
        raise ValueError(
            "Refine Mask follows the words of the edit's prompt, and the prompt is empty. Connect the Prompt with "
            "Words whose conditioning is the sampler's positive one."
        )
    return Refinement(columns, prompt.length, start, threshold, scales, own_scale, reach)


class Target:
    """The target mask of the moment in one run, and what is derived from it.

    Attributes:
        mask: (M, H, W) bool on the CPU; the given one until the first refined mask replaces it.
    """

    def __init__(self, masks: EditMasks) -> None:
        self.mask = masks.target
        self._given, self._refinement = masks.target, masks.refinement
        self._derived: dict[Hashable, Any] = {}
        self._words: Tensor | None = None
        self._own: MeanMap | None = None

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
        if call.run.reading is not None:
            return  # a pass that is differentiated is none of the run's own
        add = {"cross": self._add_words, "self": self._add_own}[kind]
        for chunk in (i for i, conditional in enumerate(call.conditional) if conditional):
            add(refinement, call, call.rows(chunk))

    def _add_words(self, refinement: Refinement, call: AttentionCall, rows: slice) -> None:
        """The words' maps over their maximum, nearest at the latent's size (the official code's way)."""
        if refinement.scales and call.layer.scale not in refinement.scales:
            return
        heat = cross_map(call.q[rows], call.k[rows], call.heads, refinement.columns, refinement.length)
        heat = heat.mean(-1).unflatten(1, call.shape)
        heat = F.interpolate(heat[:, None], size=call.run.size, mode="nearest")[:, 0]
        heat = heat / heat.amax((1, 2), keepdim=True).clamp(min=1e-12)
        self._words = heat if self._words is None else self._words + heat

    def _add_own(self, refinement: Refinement, call: AttentionCall, rows: slice) -> None:
        """Which pixels of the drawing look at which; only their proportions matter."""
        if call.layer.scale != refinement.own_scale:
            return
        values = self_map(call.q[rows], call.k[rows], call.heads)
        if self._own is None:
            self._own = MeanMap(values, call.shape, 1)
        else:
            self._own.values.add_(values)

    def step_done(self, run: Run) -> None:
        """Replace the mask by the refined one, if this step's maps make one."""
        refinement, heat = self._refinement, self._words
        if refinement is None or heat is None:
            return
        if self._own is not None:
            sharp = sharpen(heat, self._own, 1)
            heat = F.interpolate(sharp[:, None], size=run.size, mode="bilinear")[:, 0]
        self.mask = select(heat, refinement.threshold, self._given, self._reachable(run, refinement.reach))
        self._derived.clear()
        refinement.masks.keep(run.step, self.mask)

    def _reachable(self, run: Run, reach: float) -> Tensor | None:
        """Where the refined mask may be, at the latent's size; None for everywhere."""
        if reach >= 1:
            return None
        return run.once((self, "reachable"), lambda: resize(grow(self._given, reach), run.size, "any"))


def select(heat: Tensor, threshold: float, given: Tensor, reachable: Tensor | None = None) -> Tensor:
    """Cut maps at a threshold after they are stretched to 0..1.

    Args:
        heat: (B, h, w), a mean or a sum of maps.
        given: (1 or B, H, W) bool, what an image has whose map selects nothing or everything.
        reachable: (1 or B, h, w) bool, outside of which nothing is selected; None for everywhere.

    Returns:
        (B, h, w) bool on the CPU.
    """
    chosen = (min_max(heat) > threshold).cpu()
    if reachable is not None:
        chosen = chosen & reachable
    share = chosen.float().mean((1, 2))
    useless = ((share == 0) | (share == 1))[:, None, None]
    if not useless.any():
        return chosen
    fallback = resize(given, (chosen.shape[1], chosen.shape[2]))
    return torch.where(useless, for_batch(fallback, len(chosen), "edit mask"), chosen)
