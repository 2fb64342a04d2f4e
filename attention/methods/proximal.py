"""Proximal guidance (Han et al. 2024, ProxEdit): guidance only where the prompts disagree most.

Of eps_c - eps_u, which guidance multiplies, everything below a quantile is set to zero; in the last steps the latent
is brought back to the source wherever nothing is left of it. Made for negative-prompt inversion, whose source
prompt stands in the negative prompt's place, so that what remains is where the edit differs from the source.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...host.guider import is_guided
from ...host.models import per_image
from ..engine.acts import Window
from ..engine.after_step import SourceAfterStep
from ..engine.control import GuidanceControl, missing_steps
from ..engine.moment import Moment

HARD, SOFT, RELEASED = "hard (l0)", "soft (l1)", "released (soft, quantile over source and target)"
RULES = (HARD, SOFT, RELEASED)
"""The paper's two proximal steps, and what the code of the PnP Inversion runner does under the name l0."""


def threshold_of(difference: Tensor, quantile: float, rule: str = HARD) -> Tensor:
    """Quantile 0..1 of the absolute values of each image (B, C, h, w), as (B, 1, 1, 1); of Qwen-Image with a frame.

    The released code takes it over the source's row and the target's together. Under negative-prompt inversion the
    source's two prompts are one and its differences zero, so that 0.75 is about the target's own 0.5.
    """
    values = difference.abs().flatten(1).float()
    if rule == RELEASED:
        values = torch.cat([values, torch.zeros_like(values)], dim=1)
    return per_image(values.quantile(quantile, dim=1).to(difference), difference)


def proximal(difference: Tensor, quantile: float, rule: str = HARD) -> Tensor:
    """The differences (B, C, h, w) above an image's threshold; below it zero. All but "hard" take it off the rest."""
    threshold = threshold_of(difference, quantile, rule)
    if rule == HARD:
        return torch.where(difference.abs() > threshold, difference, 0)
    return difference - difference.clamp(-threshold, threshold)


def left_alone(difference: Tensor, quantile: float, rule: str = HARD) -> Tensor:
    """Where guidance left nothing to speak of, so that the source may be held: (B, C, h, w) bool.

    Where the proximal step gives zero. The released code compares what the soft step leaves with the threshold once
    more, which holds everything below twice the threshold.
    """
    reach = 2.0 if rule == RELEASED else 1.0
    return difference.abs() <= reach * threshold_of(difference, quantile, rule)


@dataclass
class Edited:
    """Where the last step's guidance left anything, one cell further each way: (B, C, h, w); None before any step."""

    cells: Tensor | None = None


@dataclass(frozen=True, eq=False)
class ProximalGuidance(GuidanceControl):
    """Limits guidance to the largest differences.

    Attributes:
        quantile: share of the values, 0..1, that guidance leaves alone (0.75 in the PnP Inversion runner, whose rule
            is RELEASED).
        rule: of RULES.
    """

    quantile: float = 0.75
    rule: str = HARD
    name = "Proximal Guidance"
    on_joint = True

    def begin(self, run: Moment) -> Edited:
        """Refuse a run without guidance, in which there is nothing to limit."""
        if not is_guided(run.guider):
            raise ValueError(
                "Proximal Guidance limits what guidance does, and the sampler runs without it (cfg 1). Raise cfg, or "
                "remove the node."
            )
        return Edited()

    def resumed(self, run: Moment, state: Edited, before: Edited | None) -> Edited:
        """What the last step has left."""
        return state if before is None else Edited(before.cells)

    def combine(self, run: Moment, state: Edited, predictions: dict[str, Tensor]) -> dict[str, Tensor]:
        """The proximal step on what guidance multiplies."""
        uncond = predictions["uncond"]
        difference = predictions["cond"] - uncond
        edited = ~left_alone(difference, self.quantile, self.rule)
        state.cells = F.max_pool2d(edited.float().flatten(1, -3), 3, stride=1, padding=1)
        return {"cond": uncond + proximal(difference, self.quantile, self.rule)}


@dataclass(frozen=True, eq=False)
class ProximalHold(SourceAfterStep):
    """Brings the latent back to the source where proximal guidance left nothing, in the last steps.

    Attributes:
        guidance: the control whose traces it follows.
        start: share of the steps after which it begins; 0.6 is the runner's t < 400.
    """

    guidance: ProximalGuidance
    start: float = 0.6
    name = "Proximal Guidance's hold"
    on_joint = True

    def resumed(self, run: Moment, state: None, before: None) -> None:
        """The first step may have the outcome of the one before to bring back, by that one's traces."""
        if run.step > self.first(run, state) and run.states[self.guidance].cells is None:
            raise missing_steps(run, self.name, "the traces")

    def acts(self, run: Moment, state: None) -> bool:
        return run.inversion is not None and Window(self.start).holds(run)

    def first(self, run: Moment, state: None) -> int:
        return Window(self.start).first_in(run)

    def mask(self, run: Moment, state: None, latent: Tensor) -> Tensor | None:
        """A run that begins late has no step behind it, and nothing to hold yet."""
        return run.states[self.guidance].cells
