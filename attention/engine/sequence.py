"""The parts of one joint attention: text, image, pads and references in one sequence, heads apart or side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Sequence:
    """One joint attention, heads apart: q, k, v (R, H, L + N + P + M, d) of text, image, pads and references.

    Attributes:
        first, end: where the image's N tokens begin and end. pads: P. whole: the host's attention on any (R, H, n, d).
    """

    q: Tensor
    k: Tensor
    v: Tensor
    first: int
    end: int
    pads: int
    whole: Callable[..., Tensor]

    def rows(self, rows: Any) -> Sequence:
        """Some of its rows."""
        return replace(self, q=self.q[rows], k=self.k[rows], v=self.v[rows])

    @cached_property
    def image(self) -> tuple[Tensor, Tensor, Tensor]:
        """The image's part of q, k and v, heads side by side."""
        q, k, v = (heads_beside(x[:, :, self.first : self.end]) for x in (self.q, self.k, self.v))
        return q, k, v

    @property
    def around(self) -> tuple[Tensor, Tensor]:
        """Keys and values (R, H, L + P, d) of the text and of the pads: what the network adds to the image."""
        pads = slice(self.end, self.end + self.pads)
        k, v = (torch.cat([x[:, :, : self.first], x[:, :, pads]], 2) for x in (self.k, self.v))
        return k, v

    def attend(
        self,
        texts: Callable[[str], tuple[Tensor, Tensor]],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None = None,
        *,
        rows: Any = slice(None),
        text: str = "own",
    ) -> Tensor:
        """`Attend` of image queries: the text's keys and values stand before the image's, references behind them."""
        heads = self.q.shape[1]
        q, k, v = (apart(x, heads) for x in (q, k, v))
        text_k, text_v = (x[rows] for x in texts(text))
        behind_k, behind_v = (x[rows, :, self.end + self.pads :] for x in (self.k, self.v))
        if mask is not None:
            mask = F.pad(mask, (text_k.shape[2], behind_k.shape[2]))
        return self.whole(q, torch.cat([text_k, k, behind_k], 2), torch.cat([text_v, v, behind_v], 2), mask)

    def beside_image(
        self,
        texts: Callable[[str], tuple[Tensor, Tensor]],
        _: Tensor,
        *,
        rows: Any = slice(None),
        text: str = "own",
    ) -> Tensor:
        """`Beside` of the image's keys in `attend`: the text's, and those of references."""
        return heads_beside(self._all_else(texts(text)[0], rows))

    @cached_property
    def text(self) -> tuple[Tensor, Tensor]:
        """Keys and values (R, L, C) of the text, heads side by side."""
        return heads_beside(self.k[:, :, : self.first]), heads_beside(self.v[:, :, : self.first])

    def beside_words(self, words: int, fills_ahead: bool) -> Tensor:
        """Keys (R, H, L + N + P - T, d) of all but references and a prompt's own T tokens."""
        filled = slice(0, self.first - words) if fills_ahead else slice(words, self.first)
        return torch.cat([self.k[:, :, filled], self.k[:, :, self.first : self.end + self.pads]], 2)

    def attend_words(
        self,
        others: Callable[[str, int], Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None = None,
        *,
        rows: Any = slice(None),
        text: str = "own",
    ) -> Tensor:
        """`Attend` of image queries to words: the keys of all else stand beside, and have values of zero."""
        q, k, v = (apart(x, self.q.shape[1]) for x in (q, k, v))
        beside = self._all_else(others(text, k.shape[2]), rows)
        values = torch.cat([v, v.new_zeros((*v.shape[:2], beside.shape[2], v.shape[3]))], 2)
        if mask is not None:
            mask = F.pad(mask, (0, beside.shape[2]))
        return self.whole(q, torch.cat([k, beside], 2), values, mask)

    def beside_text(
        self, others: Callable[[str, int], Tensor], k: Tensor, *, rows: Any = slice(None), text: str = "own"
    ) -> Tensor:
        """`Beside` of the words' keys k (R, T, C) in `attend_words`: of all else that the text's image has.

        References are the target's: the source was inverted without them.
        """
        found = others(text, k.shape[1])
        return heads_beside(found[rows] if text == "source" else self._all_else(found, rows))

    def _all_else(self, others: Tensor, rows: Any) -> Tensor:
        """Some rows of keys (R, H, n, d), and behind them those of references."""
        return torch.cat([others[rows], self.k[rows, :, self.end + self.pads :]], 2)


def whole_attention(
    attention: Any, heads: int, kwargs: dict[str, Any], q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None
) -> Tensor:
    """The host's attention of q (R, H, n, d) to k and v (R, H, m, d): (R, n, H d); a mask (R, n, m) is added."""
    mask = None if mask is None else mask[:, None]
    out: Tensor = attention(q, k, v, heads, mask=mask, skip_reshape=True, **kwargs)
    return out


def words_alone(v: Tensor, places: Iterable[tuple[slice, slice]]) -> Tensor:
    """Values (R, H, n, d) that are zero but at places: rows, and tokens of them."""
    found = torch.zeros_like(v)
    for rows, words in places:
        found[rows, :, words] = v[rows, :, words]
    return found


def by_head(x: Tensor, heads: int) -> Tensor:
    """(R, N, H d) or (R, N, H, d), as SD3 hands either, to (R, H, N, d)."""
    return (x if x.ndim == 4 else x.unflatten(-1, (heads, -1))).transpose(1, 2)


def heads_beside(x: Tensor) -> Tensor:
    """(R, H, N, d) to (R, N, H d)."""
    return x.transpose(1, 2).flatten(2)


def apart(x: Tensor, heads: int) -> Tensor:
    """(R, N, H d) to (R, H, N, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)
