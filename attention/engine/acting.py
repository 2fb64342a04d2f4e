"""Which controls do what at one noise level, and what of the source they read there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .acts import Act, Block, How, Site
from .control import Control, GuidanceControl, LatentControl, MapControl, moves

Done = tuple[Control, Act]
"""An act and whose it is."""


@dataclass(frozen=True, eq=False)
class Acting:
    """What is done at a noise level.

    Attributes:
        controls: those that do something, in order.
        acts: what they do in the network, in order.
    """

    controls: tuple[Control, ...]
    acts: tuple[Done, ...]

    @cached_property
    def _places(self) -> dict[tuple[Site, Any], list[Done]]:
        found: dict[tuple[Site, Any], list[Done]] = {}
        for control, act in self.acts:
            for place in act.places:
                found.setdefault((act.at, place), []).append((control, act))
        return {key: sorted(acts, key=lambda done: done[1].how is not How.REPLACES) for key, acts in found.items()}

    def at(self, site: Site, place: int | Block, on: str | None = None) -> list[Done]:
        """What is done in a layer or block, first what computes it anew; with `on`, to the rows of that part alone."""
        found = self._places.get((site, place), [])
        return found if on is None else [done for done in found if done[1].on == on]

    def reads(self, site: Site, place: int | Block, of: str = "") -> set[str]:
        """Which "q", "k" and "v" are read there, of the source or of a branch's part."""
        return {part for _, act in self.at(site, place) if act.of == of for part in act.reads}

    @cached_property
    def reads_source(self) -> bool:
        """Whether any act reads the source."""
        return any(act.reads and not act.of for _, act in self.acts)

    @cached_property
    def own_half(self) -> bool:
        """Whether any act reads each half of guidance from its own half of the source."""
        return any(act.reads and act.own_half and not act.of for _, act in self.acts)

    @cached_property
    def keeps_sums(self) -> bool:
        """Whether layers add to sums while a call of the network runs, so that a call must not be made twice."""
        return any(act.how is How.LOOKS for _, act in self.acts)

    @cached_property
    def moves(self) -> bool:
        """Whether the sampler's latent is changed."""
        return any(moves(control) for control in self.controls)

    @cached_property
    def latents(self) -> tuple[LatentControl, ...]:
        """The controls that change latents."""
        return tuple(control for control in self.controls if isinstance(control, LatentControl))

    @cached_property
    def maps(self) -> tuple[MapControl, ...]:
        """The controls that rewrite cross-attention maps."""
        return tuple(control for control in self.controls if isinstance(control, MapControl))

    @cached_property
    def guidance(self) -> tuple[GuidanceControl, ...]:
        """The controls that change what guidance combines, first those that bring predictions of their own."""
        found = [control for control in self.controls if isinstance(control, GuidanceControl)]
        return tuple(sorted(found, key=lambda control: not control.rows()))
