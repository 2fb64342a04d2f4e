"""MAG-Edit: mask-based attention-adjusted guidance (Algorithm 1, Eqs 1-5).

Before each step of the first half, the latent under the mask goes a few times down the gradient of a constraint on
the new words' cross-attention maps: the word shall take a larger share of the attention inside the mask. The maps
are those that the method underneath (Prompt-to-Prompt, Plug-and-Play, CPAM) leaves.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import comfy.sampler_helpers
from torch import Tensor

from ....host.families import Family, Layer
from ....host.work import FORWARD, work
from ...engine.call import AttentionCall
from ...engine.checks import check_target_prompt
from ...engine.control import Control, Slopes
from ...engine.run import Run
from ...masks.cells import check_aspect
from .loop import guided
from .parts import Part

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class MAG(Part, Control):
    """Words that shall appear under a mask. Several on one model are guided together (Eq 5)."""

    name = "MAG-Edit"
    moves = True
    guidable = True

    def cross_layers(self, family: Family) -> tuple[Layer, ...]:
        return self.layers(family)

    def prepare(self, run: Run) -> None:
        """Check what it stands on, and say what it will cost.

        Raises:
            ValueError: a method underneath whose maps are not known, maps of a scale that the family has not,
                positions outside the prompt, or a prompt that is not sampled with.
        """
        hindering = [control.name for control in run.controls if not (control.guidable or control.passive)]
        if hindering:
            raise ValueError(
                f"MAG-Edit goes on Prompt-to-Prompt, Plug-and-Play or CPAM, or alone; this model carries "
                f"{', '.join(hindering)}, and what that makes of the cross-attention that MAG-Edit reads is not "
                "defined. Remove one of the two."
            )
        if self.detail not in FORWARD[run.family.name]:
            raise ValueError(f"{run.family.name} has no attention maps of 1/{self.detail} of the latent's side.")
        check_aspect(self.mask, run.size, "mask of MAG-Edit")
        if self.prompt is not None:
            check_target_prompt(run, self.prompt, self.name)
        self.curve.begin()
        if self.negative is not None:
            run.guider.conds[self.negative_role] = comfy.sampler_helpers.convert_cond(self.negative.conditioning)
        _plan(self, run)

    def acts(self, run: Run) -> bool:
        return self.guides and run.within(self.start, self.end)

    def cross_attention(self, call: AttentionCall) -> Tensor:
        """Nothing is changed here: in a pass made for the maps the engine takes them, see `reading`."""
        return call.own()

    def moved(self, run: Run, x: Tensor, network: Slopes) -> Tensor:
        """Algorithm 1, lines 1 to 7, for all parts at once."""
        parts = [control for control in run.acting() if isinstance(control, MAG)]
        return guided(parts, run, x, network) if parts[0] is self else x


def _plan(part: MAG, run: Run) -> None:
    """Log the work ahead, and note the last noise level that is guided."""
    levels = [sigma for sigma in run.sigmas[:-1] if run.move_to(sigma) is None and part.acts(run)]
    run.once((part, "last"), lambda: min(levels, default=0.0))
    passes = len(levels) * part.iterations * (2 if part.negative else 1)
    log.info(
        "MAG-Edit plans up to %d iterations in %d steps, worth %.0f UNet evaluations per image",
        passes,
        len(levels),
        passes * work(run.family, part.detail, part.checkpointing),
    )
