"""StyleAligned: the target reads the source's keys and values beside its own, so that it takes the source's style.

Hertz et al., "Style Aligned Image Generation via Shared Attention" (CVPR 2024), section 3.2: queries and keys of the
target get the source's mean and deviation (AdaIN), and its self-attention runs over both images' keys:
out = Att(AdaIN(Q_t, Q_s), [AdaIN(K_t, K_s), K_s], [V_t, V_s]).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...host.families import Family
from ..engine.acts import Act, Site, Window
from ..engine.call import AttentionCall
from ..engine.control import Control
from ..engine.layers import ALL, layers_of

_EPSILON = 1e-5
"""Added to variances, as in the released code."""


@dataclass(frozen=True, eq=False)
class StyleAligned(Control):
    """StyleAligned.

    Attributes:
        strength: how many times a key of the source counts beside one of the target's, 0 or more: exp of the released
            code's shared_score_shift. Its default and the paper's is 1; its notebook for photographs takes 2. At 0
            nothing is done, neither AdaIN.
        start, end: shares of the steps; the released code takes all.
        layers: a rule of `layers.layers_of`; the released code takes all (only_self_level = 0).
        adain: give the target's queries and keys the source's statistics; on in the paper.
    """

    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    layers: str = ALL
    adain: bool = True
    name = "StyleAligned"

    def acts_on(self, family: Family) -> tuple[Act, ...]:
        if self.strength <= 0:
            return ()
        layers, reads = layers_of(family, self.layers), "qkv" if self.adain else "kv"
        window = Window(self.start, self.end)
        # As in the paper, each half of guidance shares with its own half of the source.
        return (Act(Site.SELF, layers, during=window, do=self.attend, reads=reads, own_half=True),)

    def attend(self, call: AttentionCall) -> Tensor:
        """Attention over the target's own keys and the source's."""
        q, k, source = call.q, call.k, call.from_source
        if self.adain:
            q, k = adain(q, source.q), adain(k, source.k)
        keys, values = torch.cat([k, source.k], 1), torch.cat([call.v, source.v], 1)
        if self.strength == 1:
            return call.attend(q, keys, values)
        shift = q.new_zeros(keys.shape[1])
        shift[k.shape[1] :] = math.log(self.strength)
        return call.attend(q, keys, values, shift.expand(*q.shape[:2], -1))


def adain(x: Tensor, style: Tensor) -> Tensor:
    """x (R, N, C) with the mean and the deviation over tokens that each channel has in style (R, M, C)."""
    (mean, deviation), (wanted, wanted_deviation) = _statistics(x), _statistics(style)
    return (x - mean) / deviation * wanted_deviation + wanted


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation over tokens, (R, 1, C) each; one token alone, as of tiny pictures, deviates by nothing."""
    variance, mean = torch.var_mean(x, 1, correction=min(1, x.shape[1] - 1), keepdim=True)
    return mean, (variance + _EPSILON).sqrt()
