"""Plug-and-Play (PnP): the source's self-attention maps and residual features, for structure without appearance."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp

from torch import Tensor

from ...host.conditioning import Conditioning
from ...host.families import Family, Layer
from ..engine.call import AttentionCall
from ..engine.control import Claim, Control
from ..engine.moment import Moment
from ..engine.substitute import attend_with

BLOCK = {"SD1.x": ("output", 4), "SD2.x": ("output", 4), "SDXL": ("output", 1)}
"""The residual block: the second of the decoder's deepest level that has attention. The paper's for SD1.x, the one
in the same place for the others."""


SCHEDULES = ("linear", "constant", "exponential")


@dataclass(frozen=True, eq=False)
class PnP(Control):
    """Plug-and-Play.

    Attributes:
        attention_end: tau_A, share of the steps whose self-attention maps are the source's.
        feature_end: tau_f, share of the steps whose residual features are the source's.
        negative: what the result shall not be (by the authors the source prompt). The unconditional prediction
            becomes a e_empty + (1 - a) e_negative, with the sampler's negative prompt as the empty one.
        schedule: how a goes over the steps, one of SCHEDULES; alpha: a factor on it (1 for photographs, 0.75 for
            generated images).
    """

    attention_end: float = 0.5
    feature_end: float = 0.8
    negative: Conditioning | None = None
    schedule: str = "linear"
    alpha: float = 1.0
    name = "Plug-and-Play"
    guidable = True

    def self_layers(self, family: Family) -> tuple[Layer, ...]:
        """From the residual block's own place to the end: layers 8 to 15 of SD1.x ("decoder layers 4 to 11")."""
        first = next(layer.index for layer in family.layers if layer.block == BLOCK[family.name])
        return family.layers[first:]

    def replaces(self, family: Family) -> tuple[Claim, ...]:
        return (Claim("self", self.self_layers(family), 0.0, self.attention_end),)

    def acts(self, run: Moment) -> bool:
        return self.negative is not None or self.reads_source(run)

    def reads_source(self, run: Moment) -> bool:
        return run.within(0.0, max(self.attention_end, self.feature_end))

    def second_negative(self) -> Conditioning | None:
        return self.negative

    def negative_share(self, run: Moment) -> float:
        """From 1 to 0 in equal steps, 1 throughout, or exp(-6 x) with x from 0 to 1; times alpha."""
        x = run.step / max(1, run.steps - 1)
        return self.alpha * {"linear": 1 - x, "constant": 1.0, "exponential": exp(-6 * x)}[self.schedule]

    def _attends(self, run: Moment) -> bool:
        return run.within(0.0, self.attention_end)

    def reads_self(self, run: Moment) -> tuple[Layer, ...]:
        return self.self_layers(run.family) if self._attends(run) else ()

    def residual_blocks(self, family: Family) -> tuple[tuple[str, int], ...]:
        return (BLOCK[family.name],) if self.feature_end > 0 else ()

    def reads_blocks(self, run: Moment) -> tuple[tuple[str, int], ...]:
        return self.residual_blocks(run.family) if run.within(0.0, self.feature_end) else ()

    def self_attention(self, call: AttentionCall) -> Tensor:
        """The source's maps with the target's values, in both halves of guidance."""
        return attend_with(call, call.source, "qk") if self._attends(call.run) else call.own()
