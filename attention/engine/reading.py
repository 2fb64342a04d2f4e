"""A UNet call that is made for its cross-attention maps, and that ends at the last of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...host.families import Layer
from .call import AttentionCall

Maps = dict[int, Tensor]
"""Maps (B, H, N, L) by layer index, each row of a layer's softmax as the layer uses it."""


class Enough(BaseException):
    """All wanted maps are there. No Exception: what other packs catch as a failure is none of this."""


class Reading:
    """What one pass is to read, and what it has read."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.wanted = {layer.index for layer in layers}
        self.last = max(self.wanted)
        self.maps: Maps = {}
        self.done = False

    def take(self, call: AttentionCall) -> None:
        """Keep a layer's map, as the controls that act there leave it; leave the UNet at the last one.

        A checkpointed block comes by again on the way back, and has to do again what it did.

        Raises:
            ValueError: the prompt has several parts. Enough: nothing more is wanted.
        """
        if call.layer.index not in self.wanted:
            return
        if len(call.conditional) != 1:
            raise ValueError(
                f"Guided words are looked up in one prompt, but the positive conditioning has {len(call.conditional)} "
                "parts. Connect one Prompt with Words directly, without Conditioning (Combine)."
            )
        found = map_of(call)
        if self.done:
            return
        self.maps[call.layer.index] = found
        if call.layer.index == self.last:
            self.done = True
            raise Enough


def map_of(call: AttentionCall) -> Tensor:
    """The conditional rows' cross-attention map (R, H, N, L), after what the controls put in its place."""
    length = call.lengths[0] if call.lengths else call.k.shape[1]
    found = _softmax(call.q, call.k[:, :length], call.heads)
    kept = call.from_source if call.source is not None else None
    source = found if kept is None else _softmax(kept.q, kept.k, call.heads)
    return call.rewrite(call, source, found)


def _softmax(q: Tensor, k: Tensor, heads: int) -> Tensor:
    q, k = _by_head(q, heads), _by_head(k, heads)
    return torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)


def _by_head(x: Tensor, heads: int) -> Tensor:
    """(R, N, C) to (R, H, N, C / H), in float32 at least: half precision is too coarse for small shares."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (heads, -1)).transpose(1, 2)


def left_early(x: Tensor, call: Callable[[], Tensor]) -> Tensor:
    """A UNet call that may end at the last map that it is made for; its result is then zeros, which nobody reads."""
    try:
        return call()
    except Enough:
        return torch.zeros_like(x)
