"""Rotary positions of transformers whose image stands behind the prompt: features of one prompt's length at another's.

A rotary position turns pairs of channels of queries and keys by an angle that grows with it (Su et al. 2021, RoFormer,
eq. 15), so that what was computed at one position stands at another after a turn by the difference.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from ...host.transformers import Turn
from .call import Features


def moved_to(features: Features, ahead: int, turn: Turn | None, heads: int) -> Features:
    """Features as they are with another number of text tokens ahead of them.

    Args:
        ahead: text tokens before the image in the sequence that reads them. turn: None where positions do not depend
            on the text. heads: that lie side by side in C.
    """
    shift = ahead - features.ahead
    if turn is None or shift == 0:
        return features
    q, k = (None if x is None else turned(x, shift, turn, heads) for x in (features.q, features.k))
    return replace(features, q=q, k=k, ahead=ahead)


def turned(x: Tensor, shift: int, turn: Turn, heads: int) -> Tensor:
    """Queries or keys (R, N, C) with positions that lie `shift` further on; in float32, whatever their type is."""
    each = x.unflatten(-1, (heads, -1))
    even, odd = each[..., : turn.channels].float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = _angle(shift, turn, x.device)
    pairs = torch.stack([cos * even - sin * odd, sin * even + cos * odd], -1).flatten(-2)
    return torch.cat([pairs.to(x.dtype), each[..., turn.channels :]], -1).flatten(-2)


@lru_cache(maxsize=64)
def _angle(shift: int, turn: Turn, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the pairs' angles (channels / 2,): brought to the device once, and not in every layer."""
    with torch.inference_mode(False):
        share = torch.arange(0, turn.channels, 2, dtype=torch.float64) / turn.channels
        angle = shift * turn.theta**-share
        return angle.cos().float().to(device), angle.sin().float().to(device)
