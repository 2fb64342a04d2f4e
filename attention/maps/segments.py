"""Segments of an image, its regions by self-attention, and the words they go with (Dynamic Prompt Learning 3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..pictures.heat import cluster_picture, enlarged
from .clusters import assign, k_means, principal_components
from .heat import own_map, word_map
from .recorder import Recording
from .sizes import resize_maps


@dataclass(frozen=True, eq=False)
class Segments:
    """The regions of one image, which together cover it.

    Attributes:
        labels: (h, w) region numbers from 0, the largest region first.
        count: how many regions.
        words: the word of each region, None for background; empty when no words were given.
        features: (h * w, h * w) self-attention, a row for each cell.
        size: (H, W) of the image.
    """

    labels: Tensor
    count: int
    words: tuple[str | None, ...]
    features: Tensor
    size: tuple[int, int]

    def mask(self, numbers: Sequence[int]) -> Tensor:
        """(H, W) bool, the regions of some numbers."""
        chosen = torch.isin(self.labels, torch.tensor(list(numbers), dtype=torch.long))
        return enlarged(chosen[..., None].float(), self.size)[..., 0] > 0.5

    def background(self) -> Tensor:
        """(H, W) bool, the regions that go with no word."""
        return self.mask([number for number, word in enumerate(self.words) if word is None])

    def picture(self) -> Tensor:
        """The regions in colours with a legend, (H + legend, W, 3)."""
        return cluster_picture(self.labels, self.size, self._lines())

    def components(self) -> Tensor:
        """First three principal components as colours, (H, W, 3)."""
        return enlarged(principal_components(self.features).unflatten(0, self.labels.shape), self.size)

    def _lines(self) -> list[str]:
        shares = torch.bincount(self.labels.flatten(), minlength=self.count) / self.labels.numel()
        names = [f" {word or 'background'}" for word in self.words] or [""] * self.count
        return [f"{i + 1}:{names[i]} {100 * float(shares[i]):.0f} %" for i in range(self.count)]

    def report(self) -> str:
        """Number, word and share of the image of each region, a line each."""
        return "\n".join(self._lines())


def find_segments(
    recording: Recording, count: int, words: Mapping[str, Sequence[int]], least: float = 0.2, seed: int = 1
) -> list[Segments]:
    """The regions of every image of a recording.

    Args:
        words: text positions by word, to name regions by; may be empty.
        least: agreement with a word, 0..1, below which a region is background.

    Raises:
        ValueError: no self-attention was recorded, or for words no cross-attention.
    """
    own = own_map(recording)
    # As the paper's code: cells of the smaller cross map are repeated.
    nouns = {word: resize_maps(word_map(recording, at), own.shape, "nearest").flatten(1) for word, at in words.items()}
    found = []
    for i, features in enumerate(own.values):
        labels = k_means(features, count, seed=seed)
        named = assign(labels, count, {word: maps[i] for word, maps in nouns.items()}, least) if words else ()
        found.append(Segments(labels.unflatten(0, own.shape), count, tuple(named), features, recording.pixels))
    return found


def segment_numbers(text: str, count: int, words: Sequence[str | None] = ()) -> list[int]:
    """Region numbers from 0 of a text such as "1, 3", which counts from 1, or of words that regions go with.

    Args:
        words: the word of each region, as `Segments.words`.

    Raises:
        ValueError: neither a number nor a word of a region.
    """
    found: list[int] = []
    for part in (part.strip() for part in text.split(",")):
        pieces = part.split()
        if part in words:
            found += [number for number, word in enumerate(words) if word == part]
        elif all(piece.isdecimal() and 1 <= int(piece) <= count for piece in pieces):
            found += [int(piece) - 1 for piece in pieces]
        else:
            present = ", ".join(dict.fromkeys(repr(word) for word in words if word is not None)) or "none"
            raise ValueError(
                f"Regions are chosen by numbers from 1 to {count}, such as '1, 3', or by a word that a region goes "
                f"with (here: {present}); {part!r} was given."
            )
    return found
