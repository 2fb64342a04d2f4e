"""Attention with some of its parts taken from the source: a map is never formed.

softmax(Q_s K_s^T) V_t is plain attention on (Q_s, K_s, V_t), so to give the target the source's attention map is to
give it the source's queries and keys; and softmax(Q_t K_s^T) V_s needs the source's keys and values.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .call import AttentionCall


def attend_with(call: AttentionCall, parts: str, conditional_only: bool = False, text: str = "own") -> Tensor:
    """The target rows' attention (R, N, C) with parts from the source.

    Args:
        call: the attention.
        parts: which of "q", "k" and "v" are the source's, such as "qk" or "kv".
        conditional_only: leave unconditional rows as they are.
        text: whose text stands beside the image's keys, see `Attend`.
    """
    source = call.from_source
    chosen = [i for i, conditional in enumerate(call.conditional) if conditional or not conditional_only]
    if not chosen:
        return call.own()
    if len(chosen) == len(call.conditional):
        q, k, v = (getattr(source if part in parts else call, part) for part in "qkv")
        return call.attend(q, k, v, text=text)
    if call.plain and text == "own":
        # One attention for all rows: the others keep their own parts.
        q, k, v = (_mixed(call, source, part, chosen) if part in parts else getattr(call, part) for part in "qkv")
        return call.attend(q, k, v)
    out = call.own().clone()
    for chunk in chosen:
        rows = call.rows(chunk)
        q, k, v = (getattr(source if part in parts else call, part)[rows] for part in "qkv")
        out[rows] = call.attend(q, k, v, rows=rows, text=text)
    return out


def _mixed(call: AttentionCall, source: Any, part: str, chunks: list[int]) -> Tensor:
    result: Tensor = getattr(call, part).clone()
    given: Tensor = getattr(source, part)
    for chunk in chunks:
        result[call.rows(chunk)] = given[call.rows(chunk)]
    return result
