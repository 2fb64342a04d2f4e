"""The nouns whose embeddings are learned: where they stand, and which places share an embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...words.alignment import find_word
from ...words.lines import split_words
from ...words.prompt import Prompt

_Rows = Mapping[str, Tensor]
"""By the host's name of the text encoder, (P or R, C) float32."""


@dataclass(frozen=True)
class Nouns:
    """K nouns on P places of the text, with R embeddings to learn.

    A noun's token has one embedding wherever the noun stands, as a new entry of the vocabulary has (section 3.2).

    Attributes:
        names: K, as they were given.
        places: K times the noun's places on the context's token axis.
        positions: P, all of them.
        rows: P, which embedding stands at each.
    """

    names: tuple[str, ...]
    places: tuple[tuple[int, ...], ...]
    positions: tuple[int, ...]
    rows: tuple[int, ...]

    def spread(self, rows: _Rows) -> dict[str, Tensor]:
        """Embeddings (R, C) to every place (P, C)."""
        return {name: value[list(self.rows)] for name, value in rows.items()}

    def gathered(self, slopes: _Rows) -> dict[str, Tensor]:
        """Slopes at every place (P, C) to those by the embeddings (R, C)."""
        return {
            name: value.new_zeros(max(self.rows) + 1, value.shape[-1]).index_add_(0, self._index(value), value)
            for name, value in slopes.items()
        }

    def first(self, vectors: _Rows) -> dict[str, Tensor]:
        """Embeddings (P, C) of the places to those (R, C) that they share."""
        chosen = [self.rows.index(row) for row in range(max(self.rows) + 1)]
        return {name: value[chosen] for name, value in vectors.items()}

    def _index(self, like: Tensor) -> Tensor:
        return torch.tensor(self.rows, device=like.device)


def find_nouns(prompt: Prompt, named: str | Sequence[str]) -> Nouns:
    """Nouns of a prompt by their names, with commas between; "cat#2" means the second cat only.

    Raises:
        ValueError: none is named, one is not in the prompt (its words are listed), or two share a place.
    """
    names = split_words(named) if isinstance(named, str) else list(named)
    if not names:
        listed = ", ".join(dict.fromkeys(prompt.words)) or "none, for it is empty"
        raise ValueError(f"Name the nouns to learn, with commas between; the prompt's words are: {listed}.")
    places, rows, taken = [], {}, {}
    for name in names:
        found = find_word(prompt, name)
        for position in found:
            if position in taken:
                raise ValueError(
                    f"{name!r} and {taken[position]!r} name the same place of the prompt. Name each noun once, or its "
                    'occurrences one by one ("cat#1, cat#2").'
                )
            taken[position] = name
            rows[position] = (name, prompt.ids[position])
        places.append(found)
    numbers = {key: number for number, key in enumerate(dict.fromkeys(rows.values()))}
    return Nouns(tuple(names), tuple(places), tuple(rows), tuple(numbers[key] for key in rows.values()))
