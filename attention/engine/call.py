"""One attention of the target rows, as a control is handed it, and the source's features beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...host.families import Layer
from .moment import Moment

Attend = Callable[..., Tensor]
"""Attention: q (R, N, C), k and v (R, L, C), heads side by side in C, to (R, N, C); last a mask to add (R, N, L).

On a transformer's joint attention k and v are the image's (self) or the words' (cross), and what they are not stands
beside them: keys and values of the text beside the image's, keys of the image, with values of zero, beside the words'.
Two further arguments say which, and mean nothing on UNets: `rows`, the slice of the target's rows that q, k and v are
of, and `text`, whether the text in this attention is the rows' "own" or the "source"'s. Where an act changes the words'
share, self acts are handed the image's share only: the values of the words are zero."""
Beside = Callable[..., Tensor | None]
"""The keys (R, n, C) that stand beside keys k (R, L, C) in `Attend` and share their softmax; None on UNets.

Further arguments, as `Attend` has them: `rows` and `text`."""


@dataclass(frozen=True, eq=False)
class Features:
    """Queries, keys and values of one attention: q (R, N, C), k and v (R, L, C), heads side by side in C.

    None stands for a part that no act reads (`Act.reads`), and that is therefore not kept. `ahead` counts the text's
    tokens before the image's, on which a transformer's positions may depend; `words` are the prompt's own among them.
    """

    q: Tensor | None = None
    k: Tensor | None = None
    v: Tensor | None = None
    ahead: int = 0
    words: int = 0


def place_of_words(words: int, length: int, fills_ahead: bool) -> slice:
    """Where a prompt's own tokens stand in a text of some length."""
    return slice(length - words, length) if fills_ahead else slice(words)


class SourceRows:
    """The source's features repeated to the target's rows, each part when it is first asked for.

    Args:
        chunks: the features that each target chunk reads, S rows each.
        batch: images per chunk; S is 1 or the batch.
        dtype: the target's, which is wider in a pass that is differentiated; None for that of the features.
    """

    def __init__(self, chunks: Sequence[Features], batch: int, dtype: torch.dtype | None = None) -> None:
        self._chunks, self._batch, self._dtype = chunks, batch, dtype

    @cached_property
    def q(self) -> Tensor:
        """(R, N, C)."""
        return self._rows("q")

    @cached_property
    def k(self) -> Tensor:
        """(R, L, C)."""
        return self._rows("k")

    @cached_property
    def v(self) -> Tensor:
        """(R, L, C)."""
        return self._rows("v")

    def _rows(self, part: str) -> Tensor:
        kept = [getattr(features, part) for features in self._chunks]
        if any(x is None for x in kept):
            raise RuntimeError(
                f"The source's {part} was not kept here: the act that reads it has to say so (Act.reads)."
            )
        rows = torch.cat([_expand(x, self._batch) for x in kept])
        return rows if self._dtype is None else rows.to(self._dtype)


def _expand(x: Tensor, batch: int) -> Tensor:
    if x.shape[0] not in (1, batch):
        raise ValueError(
            f"The inversion holds {x.shape[0]} image(s), but the sampler runs a batch of {batch}. Use one image, "
            "or as many as the batch."
        )
    return x.expand(batch, *x.shape[1:])


def source_missing(run: Moment, place: str) -> ValueError:
    """What is said where the source's features are to be read and its rows have not come by."""
    return ValueError(
        "Remove nodes that skip calls or layers of the model (TeaCache, First Block Cache and the like): the source "
        f"image was not run at sigma {run.sigma:.3f}, and this edit reads it in {place}."
    )


def _as_it_is(_: AttentionCall, __: Tensor, target: Tensor) -> Tensor:
    return target


def nothing_beside(_: Tensor, **__: Any) -> None:
    """On a UNet's attention a map counts the keys that it is of."""


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One attention of the target rows, as a control sees it.

    Attributes:
        run: the run's state; layer: where; shape: (h, w) of the feature map.
        q, k, v: the target rows' own, R = chunks * batch rows in chunk order.
        conditional: which chunks are conditional, one bool per chunk.
        batch: images per chunk.
        own: computes the target's attention as it would be without this control (earlier controls and other
            packs' patches included).
        attend: plain attention on any queries, keys and values, and a mask if one is given.
        beside: the keys that `attend` puts beside those it is given, which a map of these has to count too.
        source: the source's features repeated to the target rows, where the act reads them: those of the source
            prompt for every chunk, or each chunk's own half of guidance (`Act.own_half`). In cross-attention k and v
            hold the source's own L tokens. See `from_source`.
        state: of the control in this run, what its `begin` has made.
        heads: attention heads that lie side by side in C.
        lengths: per chunk, the number of its prompt's own text tokens; see `text`.
        fills_ahead: whether what fills a text up stands ahead of its prompt.
        extra: keys and values (R, L, C) of the contexts that controls asked for, in cross-attention.
        guiding: part of a pass that is made for a gradient, and none of the run's own.
        rewrite: what all controls make of a cross-attention map: given the call, the source's map and the target's
            own, see `MapControl.rewritten`.
    """

    run: Moment
    layer: Layer
    shape: tuple[int, int]
    q: Tensor
    k: Tensor
    v: Tensor
    conditional: tuple[bool, ...]
    batch: int
    own: Callable[[], Tensor]
    attend: Attend
    source: Features | SourceRows | None = None
    state: Any = None
    heads: int = 1
    lengths: tuple[int, ...] = ()
    fills_ahead: bool = False
    extra: Mapping[str, tuple[Tensor, Tensor]] | None = None
    guiding: bool = False
    rewrite: Callable[[AttentionCall, Tensor, Tensor], Tensor] = _as_it_is
    beside: Beside = nothing_beside

    @property
    def plain(self) -> bool:
        """Whether `own` is plain attention on q, k and v, so that parts of it may be computed alone."""
        return getattr(self.own, "plain", False)

    @property
    def from_source(self) -> Any:
        """The source's features, as `Features` or `SourceRows` with all the parts that the act reads.

        Raises:
            ValueError: they are not there.
        """
        if self.source is None:
            raise source_missing(self.run, f"layer {self.layer.index}")
        return self.source

    def rows(self, chunk: int) -> slice:
        """The rows of a chunk."""
        return slice(chunk * self.batch, (chunk + 1) * self.batch)

    def text(self, chunk: int) -> slice:
        """Where a chunk's own prompt stands in k and v of cross-attention.

        On UNets the host repeats prompts to a common length, and this holds all that there is; transformers fill them
        up with tokens of their own.
        """
        return place_of_words(self.lengths[chunk], self.k.shape[1], self.fills_ahead)
