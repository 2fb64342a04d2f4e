"""MAG-Edit: mask-based attention-adjusted guidance (Algorithm 1, Eqs 1-5).

Before each step of the first half, the latent under the mask goes a few times down the gradient of a constraint on
the new words' cross-attention maps: the word shall take a larger share of the attention inside the mask. The maps
are those that the method underneath (Prompt-to-Prompt, Plug-and-Play, CPAM) leaves.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ....host.conditioning import for_guider
from ....host.families import Family
from ....host.work import work
from ...engine.acts import Act, How, Site, Window
from ...engine.checks import check_target_prompt
from ...engine.control import LatentControl, Slopes, only_looks
from ...engine.moment import Moment
from ...engine.run import Run
from ...masks.cells import check_aspect
from ...masks.judged import judge_mask
from .loop import guided
from .parts import Guided, Part

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class MAG(Part, LatentControl):
    """Words that shall appear under a mask. Several on one model are guided together (Eq 5)."""

    name = "MAG-Edit"
    guidable = True

    def acts_on(self, family: Family) -> tuple[Act, ...]:
        """Nothing is changed there: in a pass made for the maps the engine takes them, see `reading`."""
        return (Act(Site.CROSS, self.layers(family), during=self._window, when=self._guides, how=How.STANDS_ON),)

    def fits(self, size: tuple[int, int]) -> None:
        """Refuse a mask of another picture."""
        check_aspect(self.mask, size, "mask of MAG-Edit")

    def begin(self, run: Run) -> Guided:
        """Check what it stands on, and say what it will cost.

        Raises:
            ValueError: a method underneath whose maps are not known, maps of a scale that the family has not,
                positions outside the prompt, or a prompt that is not sampled with.
        """
        hindering = [
            control.name for control in run.controls if not (control.guidable or only_looks(control, run.family))
        ]
        if hindering:
            raise ValueError(
                f"MAG-Edit goes on Prompt-to-Prompt, Plug-and-Play or CPAM, or alone; this model carries "
                f"{', '.join(hindering)}, and what that makes of the cross-attention that MAG-Edit reads is not "
                "defined. Remove one of the two."
            )
        judge_mask(run, self.mask, self.name)
        if self.prompt is not None:
            check_target_prompt(run, self.prompt, self.name)
        self.curve.begin()
        if self.negative is not None:
            run.guider.conds[self.negative_role] = for_guider(self.negative.conditioning)
        return Guided(_plan(self, run), self.curve.points)

    def resumed(self, run: Moment, state: Guided, before: Guided | None) -> Guided:
        """The curve goes on; nothing else is gathered."""
        if before is not None:
            self.curve.points.extend(before.points)
        return state

    @property
    def _window(self) -> Window:
        return Window(self.start, self.end)

    def _guides(self, run: Moment, state: Any) -> bool:
        return self.guides

    def acts(self, run: Moment, state: Any) -> bool:
        return self.guides and self._window.holds(run)

    def finish(self, run: Run, state: Guided, latent: Tensor) -> None:
        """Leave the curve, under the latent that the run ended with."""
        self.curve.keep(latent)

    def before(self, run: Run, state: Guided, x: Tensor, network: Slopes) -> Tensor:
        """Algorithm 1, lines 1 to 7, for all parts at once."""
        parts = [control for control in run.acting.controls if isinstance(control, MAG)]
        return guided(parts, run, x, network) if parts[0] is self else x


def _plan(part: MAG, run: Run) -> float:
    """Log the work ahead; returns the last noise level that is guided, 0 if none is."""
    levels = [sigma for sigma in run.sigmas[:-1] if run.move_to(sigma) is None and part.acts(run, None)]
    passes = len(levels) * part.iterations * (2 if part.negative else 1)
    log.info(
        "MAG-Edit plans up to %d iterations in %d steps, worth %.0f UNet evaluations per image",
        passes,
        len(levels),
        passes * work(run.family, part.detail, part.checkpointing),
    )
    return min(levels, default=0.0)
