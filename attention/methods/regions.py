"""Region prompts: each region of the image reads a prompt of its own (CPAM section 3.1, Figure 2; Eq 4 for many).

Cross-attention of the conditional rows is computed region by region; self-attention stays normal, and joins the
regions into one picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...host.conditioning import Conditioning, source_conditioning
from ...host.families import Family
from ...host.remarks import Kind
from ..engine.acts import NULL_TEXT, Act, Site
from ..engine.call import AttentionCall
from ..engine.control import Control, MapControl
from ..engine.moment import Moment, savable
from ..engine.run import Run
from ..masks.cells import check_aspect, for_batch, resize, selecting

ELSEWHERE = ("null text", "main prompt")
"""What pixels in no region read: the sampler's negative prompt, as in the paper, or its positive prompt."""


@dataclass(frozen=True, eq=False)
class Region:
    """A place and what it shall show.

    Attributes:
        mask: (M, H, W) bool on the CPU, M = 1 or one per image.
        states: text states (1 or B, L, C).
    """

    mask: Tensor
    states: Tensor


def make_region(mask: Tensor, conditioning: Conditioning) -> Region:
    """A region from a MASK (M, H, W) and a CONDITIONING.

    Raises:
        ValueError: the mask selects nothing, or the conditioning is more than one plain prompt.
    """
    chosen = selecting(mask, "mask of a region", "Draw the region, or leave it out")
    # What acts on a whole prompt's rows cannot be honoured: a region has none.
    states, _ = source_conditioning(conditioning, "prompt of a region")[0]
    return Region(chosen, states)


@dataclass(frozen=True, eq=False)
class RegionPrompts(Control):
    """Prompts by region.

    Attributes:
        regions: where they overlap, the later one counts.
        elsewhere: one of ELSEWHERE.
    """

    regions: tuple[Region, ...]
    elsewhere: str = ELSEWHERE[0]
    name = "Region Prompts"

    def acts_on(self, family: Family) -> tuple[Act, ...]:
        """Hence CPAM's Eq 4 always acts on top of this, whichever node comes first."""
        return (Act(Site.CROSS, family.layers, do=self.show, contexts=self._prompts),)

    def begin(self, run: Run) -> dict[Any, list[tuple[str, Tensor, Tensor]]]:
        """Refuse masks of another picture, and what does not go together with this control."""
        for number, region in enumerate(self.regions, 1):
            check_aspect(region.mask, run.size, f"mask of region {number}")
        for control in run.controls:
            if isinstance(control, MapControl):
                self._check_beside(control, run)
        parts = len(run.guider.conds.get("positive") or [])
        if self.elsewhere == ELSEWHERE[0] and parts > 1:
            run.remarks.add(
                Kind.IGNORED,
                f"Set Region Prompts' elsewhere to {ELSEWHERE[1]} to have the sampler's positive prompt drawn: it has "
                f"{parts} parts (a schedule or a combination), and with {ELSEWHERE[0]} no pixel reads it.",
            )
        return {}

    def _check_beside(self, other: MapControl, run: Moment) -> None:
        """Where another control hides the prompt, a region's is hidden too (CPAM's Eq 4)."""
        if other.follows():
            raise ValueError(
                f"{other.follows()} follows the words of the sampler's prompt, but with Region Prompts other prompts "
                f"draw the picture. Leave {other.follows()} out: the regions say where things are."
            )
        shown = other.shown()
        if shown is None:
            return
        target = resize(shown, run.size, "any")
        for number, region in enumerate(self.regions, 1):
            if not (resize(region.mask, run.size, "any") & target).any():
                raise ValueError(
                    f"Region {number} lies outside {other.name}'s target mask, where {other.name} shows no prompt to "
                    f"any pixel{'' if target.any() else ' (a removal has no target at all)'}. Choose another task in "
                    f"Edit Masks, mask the region too, or switch {other.name}'s localized off."
                )

    def _prompts(self, run: Moment, state: Any) -> Mapping[str, Tensor]:
        """The regions' prompts, and the null text where it is read."""
        found = {_key(i): region.states for i, region in enumerate(self.regions)}
        if self.elsewhere == ELSEWHERE[0]:
            states = run.context("negative")
            if states is None:
                raise ValueError(
                    "Region Prompts shows the null text to pixels in no region, but the sampler has no negative "
                    "conditioning. Use a CFG guider (or KSampler), or set elsewhere to the main prompt."
                )
            found[NULL_TEXT] = states
        return found

    def show(self, call: AttentionCall) -> Tensor:
        """Conditional rows: Att(Q_k, K_k, V_k) for the queries of each region k. Unconditional rows stay."""
        if call.extra is None or not any(call.conditional):
            return call.own()
        key = (call.shape, call.batch, call.conditional, call.q.device)
        if key not in call.state:
            call.state[key] = savable(lambda: self._places(call))
        out = call.own().clone()
        for name, rows, queries in call.state[key]:
            k, v = (x[rows] for x in call.extra[name])
            out[rows[:, None], queries] = call.attend(call.q[rows][:, queries], k, v)
        return out

    def _places(self, call: AttentionCall) -> list[tuple[str, Tensor, Tensor]]:
        """Which queries of which rows read which context; rows whose images share masks are taken together."""
        owners = self._owners(call.shape, call.batch)
        conditional = [i for i, yes in enumerate(call.conditional) if yes]
        shared = bool((owners == owners[:1]).all())
        places = []
        for item in range(1 if shared else call.batch):
            images = range(call.batch) if shared else (item,)
            rows = torch.tensor([chunk * call.batch + image for chunk in conditional for image in images])
            for owner in owners[item].unique().tolist():
                name = NULL_TEXT if owner < 0 else _key(owner)
                if owner >= 0 or self.elsewhere == ELSEWHERE[0]:
                    queries = (owners[item] == owner).nonzero()[:, 0]
                    places.append((name, rows.to(call.q.device), queries.to(call.q.device)))
        return places

    def _owners(self, shape: tuple[int, int], batch: int) -> Tensor:
        """The region of each query (batch, N), -1 for none; the last one that covers it."""
        owners = torch.full((batch, shape[0] * shape[1]), -1)
        for number, region in enumerate(self.regions):
            cells = resize(region.mask, shape).flatten(1)
            owners[for_batch(cells, batch, f"mask of region {number + 1}")] = number
        return owners


def _key(number: int) -> str:
    return f"prompt of region {number + 1}"
