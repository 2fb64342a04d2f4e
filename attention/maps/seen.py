"""Maps of one attention as an act is handed it: of its prompt's words, and of the image's tokens among each other.

On joint attention a word's map are its tokens' columns of the one softmax over text and image. Of the image's columns
of that softmax each row is divided by its sum, so that it says, as on a UNet, of which tokens a mean is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ...host.families import Family, Layer
from ..engine.call import AttentionCall
from ..engine.layers import MIDDLE, layers_of
from .probabilities import OBJECT_SCALE, cross_map, self_map


def object_layers(family: Family) -> tuple[Layer, ...]:
    """Layers whose maps of words show objects best: those of a quarter of the latent's side, a transformer's middle."""
    if family.joint:
        return layers_of(family, MIDDLE)
    return tuple(layer for layer in family.layers if layer.scale == OBJECT_SCALE)


def words_of(
    call: AttentionCall,
    chunk: int,
    columns: Sequence[int],
    length: int | None = None,
    measure: Callable[..., Tensor] = cross_map,
) -> Tensor:
    """What a chunk's image tokens give to some tokens of its prompt, (B, N, T) float32, mean over heads.

    Args:
        columns: T positions on the prompt's token axis. length: of that axis, to be checked; None for what is there.
        measure: `cross_map`, or another function of its arguments.

    Raises:
        ValueError: see `cross_map`.
    """
    rows = call.rows(chunk)
    k = call.k[rows, call.text(chunk)]
    return measure(call.q[rows], k, call.heads, columns, length, call.beside(k, rows=rows))


def source_words_of(call: AttentionCall, chunk: int, columns: Sequence[int], length: int | None = None) -> Tensor:
    """The same of the source that a chunk reads, and of its own prompt.

    Raises:
        ValueError: see `cross_map`; or the source's features are not there.
    """
    rows, kept = call.rows(chunk), call.from_source
    q, k = kept.q[rows], kept.k[rows]
    return cross_map(q, k, call.heads, columns, length, call.beside(k, rows=rows, text="source"))


def itself_of(call: AttentionCall, chunk: int) -> Tensor:
    """What a chunk's image tokens give to each other, (B, N, N) float32, mean over heads; rows add up to one."""
    rows = call.rows(chunk)
    k = call.k[rows]
    beside = call.beside(k, rows=rows)
    found = self_map(call.q[rows], k, call.heads, beside)
    return found if beside is None else found / found.sum(-1, keepdim=True)
