"""Plug-and-Play (PnP): the source's self-attention maps and residual features, for structure without appearance."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .control import AttentionCall, Claim, Control
from .families import Family, Layer
from .run import Run
from .substitute import attend_with

BLOCK = {"SD1.x": ("output", 4), "SD2.x": ("output", 4), "SDXL": ("output", 1)}
"""The residual block: the second of the decoder's deepest level that has attention. The paper's for SD1.x, the one
in the same place for the others."""


@dataclass(frozen=True, eq=False)
class PnP(Control):
    """Plug-and-Play.

    Attributes:
        attention_end: tau_A, share of the steps whose self-attention maps are the source's.
        feature_end: tau_f, share of the steps whose residual features are the source's.
    """

    attention_end: float = 0.5
    feature_end: float = 0.8
    name = "Plug-and-Play"

    def self_layers(self, family: Family) -> tuple[Layer, ...]:
        """From the residual block's own place to the end: layers 8 to 15 of SD1.x ("decoder layers 4 to 11")."""
        first = next(layer.index for layer in family.layers if layer.block == BLOCK[family.name])
        return family.layers[first:]

    def replaces(self, family: Family) -> tuple[Claim, ...]:
        return (Claim("self", self.self_layers(family), 0.0, self.attention_end),)

    def acts(self, run: Run) -> bool:
        return run.within(0.0, max(self.attention_end, self.feature_end))

    def reads_source(self, run: Run) -> bool:
        return True

    def _attends(self, run: Run) -> bool:
        return run.within(0.0, self.attention_end)

    def reads_self(self, run: Run) -> tuple[Layer, ...]:
        return self.self_layers(run.family) if self._attends(run) else ()

    def residual_blocks(self, family: Family) -> tuple[tuple[str, int], ...]:
        return (BLOCK[family.name],) if self.feature_end > 0 else ()

    def reads_blocks(self, run: Run) -> tuple[tuple[str, int], ...]:
        return self.residual_blocks(run.family) if run.within(0.0, self.feature_end) else ()

    def self_attention(self, call: AttentionCall) -> Tensor:
        """The source's maps with the target's values, in both halves of guidance."""
        return attend_with(call, call.source, "qk") if self._attends(call.run) else call.own()
