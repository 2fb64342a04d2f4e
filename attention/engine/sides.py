"""The two sides of a joint attention: what is kept of the source's, and what stands beside that which acts are handed.

Acts on self-attention are handed the image, with the text beside it; acts on cross-attention the words of the prompt,
with all else beside them. Either may be the rows' own or the source's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...host.families import Layer
from ...host.marks import KEY
from ...host.transformers import Turn
from .acts import Site
from .call import Features, SourceRows, place_of_words, source_missing
from .roles import Call, Group
from .run import Run
from .sequence import Sequence, apart, heads_beside, words_alone
from .turning import moved_to

TEXT_SIDE = "text"
"""The place of the source's keys and values of the text (and of pads), beside that of its image."""
OTHER_SIDE = "others"
"""The place of the source's keys of all but the words, beside that of its words."""


def keep_sides(call: Call, layer: Layer, sequence: Sequence, fills_ahead: bool) -> None:
    """Keep the source's features that acts read of its image and words in a block, and what stands beside them."""
    run, ahead = call.run, sequence.first
    reads = {site: run.acting.reads(site, layer.index) for site in (Site.SELF, Site.CROSS)}
    if not call.sources or not any(reads.values()):
        return
    for role, length, rows in call.sources:
        own, words = sequence.rows(rows), length or ahead
        q, k, v = own.image
        kept: dict[Any, dict[str, Tensor]] = {}
        if names := reads[Site.SELF]:
            image = {"q": q, "k": k, "v": v}
            kept[Site.SELF] = {name: image[name] for name in names}
            kept[TEXT_SIDE] = dict(zip("kv", map(heads_beside, own.around), strict=True))
        if names := reads[Site.CROSS]:
            place = place_of_words(words, ahead, fills_ahead)
            text = {"q": q, **dict(zip("kv", (x[:, place] for x in own.text), strict=True))}
            kept[Site.CROSS] = {name: text[name] for name in names}
            kept[OTHER_SIDE] = {"k": heads_beside(own.beside_words(words, fills_ahead))}
        for place, features in kept.items():
            captured = run.captured.setdefault((place, layer.index), {})
            captured[role] = Features(**features, ahead=ahead, words=words)


@dataclass(frozen=True, eq=False)
class Sides:
    """What stands beside in one attention of a group's rows.

    Attributes:
        sequence: of those rows. turn: how the network turns queries and keys by the prompt's length, if it does.
        fills_ahead: whether what fills a text up stands ahead of its prompt.
    """

    call: Call
    group: Group
    layer: Layer
    sequence: Sequence
    turn: Turn | None
    fills_ahead: bool

    @property
    def words(self) -> list[tuple[slice, slice]]:
        """The rows of each chunk, and where its prompt's own tokens stand."""
        batch, length = self.call.batch, self.sequence.first
        return [
            (slice(i * batch, (i + 1) * batch), place_of_words(words or length, length, self.fills_ahead))
            for i, words in enumerate(self.group.lengths)
        ]

    def text(self, whose: str) -> tuple[Tensor, Tensor]:
        """Keys and values (R, H, L, d) around the image of the "own" rows, or of the "source" for all of them."""
        if whose == "own":
            return self.sequence.around
        rows = self._source(TEXT_SIDE)
        return self._apart(rows.k), self._apart(rows.v)

    def text_without_words(self, whose: str) -> tuple[Tensor, Tensor]:
        """The same where the words have values of zero."""
        k, v = self.text(whose)
        if whose == "own":
            return k, v - words_alone(v, self.words)
        kept = self._kept(TEXT_SIDE)
        return k, v - words_alone(v, [(slice(None), place_of_words(kept.words, kept.ahead, self.fills_ahead))])

    def others(self, whose: str, words: int) -> Tensor:
        """Keys (R, H, n, d) of what is beside so many words of the "own" rows, or beside all of the "source"'s."""
        if whose == "own":
            return self.sequence.beside_words(words, self.fills_ahead)
        return self._apart(self._source(OTHER_SIDE).k)

    def at_home(self, features: Features) -> Features:
        """Features of the source at the positions that these rows' own have."""
        return moved_to(features, self.sequence.first, self.turn, self.sequence.q.shape[1])

    def _kept(self, place: str) -> Features:
        """What was kept of the source, as it was kept."""
        run: Run = self.call.run
        kept = run.captured.get((place, self.layer.index), {}).get(KEY)
        if kept is None:
            raise source_missing(run, f"block {self.layer.block[0]} {self.layer.block[1]}")
        return kept

    def _source(self, place: str) -> SourceRows:
        """The same for all rows, at their positions."""
        chunks = [self.at_home(self._kept(place))] * len(self.group.roles)
        return SourceRows(chunks, self.call.batch, self.sequence.k.dtype)

    def _apart(self, x: Tensor) -> Tensor:
        return apart(x, self.sequence.q.shape[1])
