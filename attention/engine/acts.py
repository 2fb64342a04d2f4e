"""What a control does inside the network, as data: where, during which steps, what it reads of the source, and how.

Everything that the engine has to know is derived from these: hooks, which controls exclude each other, the source's
rows and which of its features are kept, and the planned evaluations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from torch import Tensor

from ...host.families import Layer
from .moment import Moment

Block = tuple[str, int]
"""The host's name of a UNet block, such as ("output", 4)."""
NULL_TEXT = "null text"
"""The name under which controls ask for the unconditional prompt as a further context."""
SLACK = 1e-9
"""What keeps truncation safe from 0.58 * 50 = 28.999999."""


class Site(Enum):
    """Where in a block something can be done."""

    SELF = "self"
    CROSS = "cross"
    RESIDUAL = "residual"


class How(Enum):
    """How an act stands to what its layer would do without it.

    REPLACES computes it anew, so that two such acts on one layer at one time exclude each other; STANDS_ON takes what
    was there (`AttentionCall.own`) and changes it; LOOKS leaves it as it is, bit for bit, and adds to sums.
    """

    REPLACES = "replaces"
    STANDS_ON = "stands on"
    LOOKS = "looks"


@dataclass(frozen=True)
class Window:
    """A share of a run's steps; its end is left out.

    Shares of steps are rounded to the nearest step. The released codes of Prompt-to-Prompt, Local Blend,
    Free-Prompt-Editing and Plug-and-Play truncate instead (0.75 of 50 steps are 37 there and 38 here), which
    `released` keeps, for MasaCtrl's and CPAM's windows too. Where such a code counts steps itself (CPAM's 3 of 50)
    or the share is the pack's own (Exact Background, MAG-Edit, Record Attention Maps), it is the nearest.

    Attributes:
        start, end: shares, 0 to 1.
        released: truncate.
        further: rows that the released code's table has beyond the number of steps (Prompt-to-Prompt's cross maps: 1).
    """

    start: float = 0.0
    end: float = 1.0
    released: bool = False
    further: int = 0

    def step(self, share: float, steps: int) -> int:
        """The step, from 0, that a share of them stands for."""
        place = share * (steps + self.further)
        return int(place + SLACK) if self.released else round(place)

    def first(self, steps: int) -> int:
        """The first step inside."""
        return self.step(self.start, steps)

    def of(self, steps: int) -> range:
        """The steps inside."""
        return range(self.first(steps), self.step(self.end, steps))

    def first_in(self, run: Moment) -> int:
        """The first step inside, no later than the last step that there is: late starts of what is not empty count."""
        first = self.first(run.steps)
        return min(first, run.last) if self.start < min(self.end, 1) else first

    def steps_of(self, run: Moment) -> range:
        """The steps inside that a whole run has."""
        return range(self.first_in(run), min(self.step(self.end, run.steps), run.last + 1))

    def holds(self, run: Moment) -> bool:
        """Whether the run's present step is inside."""
        return self.first_in(run) <= run.step < self.step(self.end, run.steps)

    def overlaps(self, other: Window, steps: int | None) -> bool:
        """Whether two windows share a step of so many, or any share of the steps if their number is not known."""
        if steps is None:
            return max(self.start, other.start) < min(self.end, other.end)
        one, two = self.of(steps), other.of(steps)
        return max(one.start, two.start) < min(one.stop, two.stop)


@dataclass(frozen=True, eq=False)
class Act:
    """One thing that a control does.

    Attributes:
        at: where in the layers or blocks.
        layers: attention layers, for SELF and CROSS.
        blocks: UNet blocks whose hidden state is the source's, for RESIDUAL.
        during: of the steps.
        when: a further condition inside the window, given the moment and the control's state.
        do: the attention of the target rows, (R, N, C); called with an `AttentionCall`. LOOKS returns nothing.
        reads: which of the source's "q", "k" and "v" it reads at this site; none: the source need not run for it.
        on: the part of a branch whose rows it acts on; empty: those of the sampler's own latent and prompts.
        of: the part of a branch that it reads in the source's place; empty: the source.
        own_half: each half of guidance reads its own half of the source. Costs a second source row per step, unless
            the source prompt is the negative prompt (both empty, as for photographs): then the halves are the same.
        how: how it stands to what was there.
        whole: whether on joint attention it says which text is read too, so that acts on the text's share exclude it.
        contexts: further texts (1 or B, L, C) by name, which the cross layers shall project to keys and values, given
            the moment and the control's state.
    """

    at: Site
    layers: tuple[Layer, ...] = ()
    blocks: tuple[Block, ...] = ()
    during: Window = Window()
    when: Callable[[Moment, Any], bool] | None = None
    do: Callable[[Any], Any] | None = None
    reads: str = ""
    on: str = ""
    of: str = ""
    own_half: bool = False
    how: How = How.REPLACES
    whole: bool = False
    contexts: Callable[[Moment, Any], Mapping[str, Tensor]] | None = None

    @property
    def places(self) -> tuple[int, ...] | tuple[Block, ...]:
        """What tells its places within the site: numbers of layers, or blocks."""
        return self.blocks if self.at is Site.RESIDUAL else tuple(layer.index for layer in self.layers)

    def holds(self, run: Moment, state: Any) -> bool:
        """Whether it is done at the run's present step."""
        return self.during.holds(run) and (self.when is None or self.when(run, state))

    def excludes(self, other: Act, steps: int | None) -> tuple[Layer, ...]:
        """Layers whose attention both compute anew at the same time."""
        replaces = self.how is other.how is How.REPLACES
        whole = (self.whole and other.at is Site.CROSS) or (other.whole and self.at is Site.CROSS)
        apart = not (self.at is other.at or whole) or not self.during.overlaps(other.during, steps)
        if not replaces or self.on != other.on or apart:
            return ()
        return tuple(layer for layer in self.layers if layer in other.layers)
