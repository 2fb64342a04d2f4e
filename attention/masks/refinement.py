"""How a target mask is refined during a run, and what a run makes of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ...host.families import Family, Layer
from ...host.models import CELL
from ..engine.acts import Window
from ..engine.checks import check_target_prompt
from ..engine.moment import Moment
from ..engine.results import Results
from ..maps.recorder import sizes_of
from ..maps.seen import object_layers
from ..words.alignment import find_words
from ..words.prompt import Prompt


@dataclass(frozen=True, eq=False)
class RefinedRun:
    """The refined masks of one run.

    Attributes:
        by_step: (B, h, w) bool of the latent's size, by the step from 0 that each ended.
        cell: pixels along a side of the latent's cells.
    """

    by_step: dict[int, Tensor]
    cell: int = CELL


class RefinedMasks(Results[RefinedRun]):
    """Where runs leave their refined masks."""

    def __init__(self) -> None:
        super().__init__(
            "No masks have been refined yet. Connect Refine Mask's masks to CPAM, and the sampler's latent to the "
            "input 'after', so that it runs first."
        )

    @property
    def by_step(self) -> dict[int, Tensor]:
        """The last run's masks; ValueError if nothing was refined."""
        return self.of().by_step


@dataclass(frozen=True, eq=False)
class Refinement:
    """How a target mask is refined.

    Attributes:
        columns: positions of the words on the prompt's token axis.
        length: places of that axis.
        start: share of the steps after which refined masks hold (T_m = 5 of 50).
        threshold: of the normalized maps, 0..1 (0.45 in the official runner).
        scales: `Layer.scale` of the layers whose word maps are read; empty for all, as in the released code. Not read
            for transformers, whose maps have one size.
        own_scale: `Layer.scale` of the layers whose self-attention sharpens the words' maps; None for none, as in
            the released code. Of a transformer any size means its own.
        reach: how far a refined mask may go beyond the given one, as `masks.grow` measures it; from 1 on it may be
            anywhere, as in the released code.
        released: take maps as the released code does and not as the paper says: the first mask is of the last layer's
            maps alone, maps are divided by their largest single head-and-token value and not by that of their mean,
            and a mask acts already in the last layer of the step that makes it.
        prompt: whose words these are, which must be sampled with; None leaves that unchecked.
        masks: where the refined masks are left.
    """

    columns: tuple[int, ...]
    length: int
    start: float = 0.1
    threshold: float = 0.45
    scales: tuple[int, ...] = ()
    own_scale: int | None = None
    reach: float = 1.0
    released: bool = False
    prompt: Prompt | None = None
    masks: RefinedMasks = field(default_factory=RefinedMasks)

    def first(self, run: Moment) -> int:
        """The first step, from 0, in which a refined mask holds; at least one step is needed to make it."""
        return max(1, Window(self.start).first_in(run))

    def word_layers(self, family: Family) -> tuple[Layer, ...]:
        """Layers whose word maps are read."""
        if family.joint:
            return object_layers(family)
        return tuple(layer for layer in family.layers if not self.scales or layer.scale in self.scales)

    def own_layers(self, family: Family) -> tuple[Layer, ...]:
        """Layers whose self-attention sharpens them."""
        if family.joint:
            return object_layers(family) if self.own_scale else ()
        return tuple(layer for layer in family.layers if layer.scale == self.own_scale)

    def check(self, run: Moment) -> None:
        """Check that there is something to refine with.

        Raises:
            ValueError: another prompt is sampled with, no step is left to refine in, or the model has no layers of the
                sizes that are read.
        """
        if self.prompt is not None:
            check_target_prompt(run, self.prompt, "Refine Mask")
        there = {layer.scale for layer in run.family.layers}
        for of, scales in (("map_size", self.scales), ("self_maps", (self.own_scale,))):
            if not run.family.joint and any(scale and scale not in there for scale in scales):
                raise ValueError(
                    f"{run.family} has no attention layers of the size that {of} of Refine Mask asks for; it "
                    f"has {sizes_of(run.family)}."
                )
        if self.first(run) > run.last:
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
    released: bool = Refinement.released,
) -> Refinement:
    """A refinement that follows words of a prompt.

    Args:
        words: words or phrases, separated by commas; empty takes the whole prompt, as the released runner does.
        start, threshold, scales, own_scale, reach, released: see `Refinement`.

    Raises:
        ValueError: a phrase is not in the prompt, or the prompt is empty.
    """
    columns = find_words(prompt, words) or prompt.content
    if not columns:
        raise ValueError(
            "Refine Mask follows the words of the edit's prompt, and the prompt is empty. Connect the Prompt with "
            "Words whose conditioning is the sampler's positive one."
        )
    return Refinement(columns, prompt.length, start, threshold, scales, own_scale, reach, released, prompt)
