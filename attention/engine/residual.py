"""The features of a residual block, taken from the source.

The host's `forward_timestep_embed_patch` hands every layer of a kind to a function in its place: the block itself
still computes, with the user's weights, LoRAs and offloading, and only its output is changed. A patch of the block's
inner module would have to survive all of those.
"""

from __future__ import annotations

from typing import Any

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from torch import Tensor

from ...host.marks import KEY
from .acts import Site
from .call import Features, SourceRows, source_missing
from .roles import Call


def take_residual(layer: Any, x: Tensor, emb: Tensor, context: Any, options: dict[str, Any], *_: Any) -> Tensor:
    """The host's patch: a residual block's output (R, C, h, w), target rows with the source's hidden state.

    A block is skip(x) + h(x). The target's becomes skip(x_t) + h(x_s), written as out_s + skip(x_t) - skip(x_s), so
    that a target whose input is the source's gets the source's output bit for bit.
    """
    out = layer(x, emb)
    call, block = options.get(KEY), options.get("block")
    if not isinstance(call, Call) or block is None or not call.run.acting.reads(Site.RESIDUAL, block):
        return out
    skip = layer.skip_connection(x)
    captured = call.run.captured.setdefault((Site.RESIDUAL, block), {})
    for role, _length, rows in call.sources:
        passed = skip[rows]
        captured[role] = Features(out[rows], passed, passed)
    if call.own is not None:
        if KEY not in captured:
            raise source_missing(call.run, f"block {' '.join(map(str, block))}")
        source, rows = SourceRows([captured[KEY]] * len(call.own.roles), call.batch), call.own.rows
        result = out.clone() if len(rows) < len(out) else torch.empty_like(out)
        result[rows] = source.q + (skip[rows] - source.k)
        return result
    return out


PATCH: Any = (ResBlock, take_residual)
"""What the host's list takes: the kind of layer and the function."""
