"""Plug-and-Play (PnP): the source's self-attention maps and residual features, for structure without appearance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp

import torch
from torch import Tensor

from ...host.conditioning import Conditioning
from ...host.families import Family, LayerByFamily
from ..engine.acts import Act, How, Site, Window
from ..engine.call import AttentionCall
from ..engine.control import GuidanceControl
from ..engine.moment import Moment
from ..engine.substitute import attend_with

DECODER_LAYER = LayerByFamily("Plug-and-Play's decoder layer", {"SD1.x": 8, "SD2.x": 8, "SDXL": 44})
"""The first of the layers, which lies in the residual block: the second of the decoder's deepest level that has
attention. The paper's for SD1.x, the one in the same place for the others."""
NEGATIVE = "second negative"
"""The name of the further prompt's rows."""
SCHEDULES = ("linear", "constant", "exponential")


@dataclass(frozen=True, eq=False)
class PnP(GuidanceControl):
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

    def acts_on(self, family: Family) -> tuple[Act, ...]:
        """From the residual block's own place to the end: layers 8 to 15 of SD1.x ("decoder layers 4 to 11")."""
        first = DECODER_LAYER[family]
        block = family.layers[first].block
        attention, features = (Window(0.0, end, released=True) for end in (self.attention_end, self.feature_end))
        return (
            Act(Site.SELF, family.layers[first:], during=attention, do=self.attend, reads="qk"),
            Act(Site.RESIDUAL, blocks=(block,), during=features, reads="qk", how=How.STANDS_ON),
        )

    def attend(self, call: AttentionCall) -> Tensor:
        """The source's maps with the target's values, in both halves of guidance."""
        return attend_with(call, "qk")

    def acts(self, run: Moment, state: None) -> bool:
        return self.negative is not None

    def rows(self) -> Mapping[str, Conditioning]:
        """What the result shall not be."""
        return {} if self.negative is None else {NEGATIVE: self.negative}

    def negative_share(self, step: int, steps: int) -> float:
        """Share of the sampler's own negative prediction: from 1 to 0 in equal steps, 1 throughout, or exp(-6 x).

        x goes from 0 to 1; the rest is the second negative's, and alpha a factor on the share.
        """
        x = step / max(1, steps - 1)
        return self.alpha * {"linear": 1 - x, "constant": 1.0, "exponential": exp(-6 * x)}[self.schedule]

    def combine(self, run: Moment, state: None, predictions: dict[str, Tensor]) -> dict[str, Tensor]:
        """The prediction is linear in the noise, so to mix the one is to mix the other."""
        if self.negative is None:
            return {}
        share = self.negative_share(run.step, run.steps)
        return {"uncond": torch.lerp(predictions[NEGATIVE], predictions["uncond"], share)}
