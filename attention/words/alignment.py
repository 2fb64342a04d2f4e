"""Which token of the source prompt gives its attention map to which token of the target prompt.

All of Prompt-to-Prompt's rewritings of a cross-attention map are linear in the two maps, so each is one record:
a matrix for the source's map and a factor per token for the target's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from .lines import split_words
from .prompt import Prompt, PromptWord

CHUNK = 77
"""Places of one part of a prompt; the host gives longer ones as several."""
Pair = tuple[tuple[int, ...], tuple[int, ...]]
"""Positions in the source prompt, and those in the target prompt that they go to."""


@dataclass(frozen=True, eq=False)
class TokenMap:
    """A rewriting of cross maps: A = A_source @ transfer + A_target * keep.

    Attributes:
        transfer: (L_s, L_t) float32.
        keep: (L_t,) float32.
    """

    transfer: Tensor
    keep: Tensor

    def apply(self, source: Tensor, target: Tensor) -> Tensor:
        """Rewrite maps: (..., L_s) and (..., L_t) to (..., L_t)."""
        return source @ self.transfer.to(source) + target * self.keep.to(target)

    def scaled(self, factors: Tensor) -> TokenMap:
        """Attention re-weighting: (L_t,) factors on the rewritten map."""
        return TokenMap(self.transfer * factors, self.keep * factors)

    def gated(self, gate: Tensor) -> TokenMap:
        """Rewriting only of the tokens whose gate (L_t,) is 1; those at 0 keep the target's own map."""
        return TokenMap(self.transfer * gate, self.keep * gate + (1 - gate))


def align(source: Sequence[int], target: Sequence[int]) -> list[int | None]:
    """Needleman-Wunsch: for each target id the index of the source id that it stands for, None if it is new.

    Match +1, mismatch -1, gap 0. Ties are broken as in the official code: an insertion before a deletion before
    a match.
    """
    rows, columns = len(source), len(target)
    score = [[0] * (columns + 1) for _ in range(rows + 1)]
    for i in range(1, rows + 1):
        above, here = score[i - 1], score[i]
        for j in range(1, columns + 1):
            match = above[j - 1] + (1 if source[i - 1] == target[j - 1] else -1)
            here[j] = max(here[j - 1], above[j], match)
    found: list[int | None] = [None] * columns
    i, j = rows, columns
    while i and j:
        if score[i][j] == score[i][j - 1]:
            j -= 1
        elif score[i][j] == score[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            found[j] = i
    return found


def live_positions(prompt: Prompt) -> list[int]:
    """Positions up to the first end token of each part: begin, words and end, without padding."""
    content, found = set(prompt.content), []
    for start in range(0, prompt.length, CHUNK):
        places = range(start, min(start + CHUNK, prompt.length))
        last = max((p for p in places if p in content), default=start)
        found += [p for p in places if p <= last + 1]
    return found


def align_refined(source: Prompt, target: Prompt) -> TokenMap:
    """Words are added or taken away: tokens that both prompts have get the source's map, new ones keep their own.

    Padding takes the source's map of the same place.
    """
    before, after = live_positions(source), live_positions(target)
    found = align([source.ids[p] for p in before], [target.ids[p] for p in after])
    place: list[int | None] = [p if p < source.length else None for p in range(target.length)]
    for position, index in zip(after, found, strict=True):
        place[position] = None if index is None else before[index]
    transfer, keep = torch.zeros(source.length, target.length), torch.ones(target.length)
    for position, origin in enumerate(place):
        if origin is not None:
            transfer[origin, position], keep[position] = 1, 0
    return TokenMap(transfer, keep)


def align_swapped(source: Prompt, target: Prompt, compat: bool = False) -> TokenMap:
    """Words are exchanged one for one: each word's map goes to the word in its place.

    A word is what stands between two spaces, as in the released code, so that "well-known" may become "famous". Inside
    of one, words and signs are paired too where there are as many. What is of other length shares its map out: each
    of its tokens gives 1 / n to each of the n new ones.

    Args:
        compat: the released code's rule behind the last changed word, by which every later token is off by the
            difference in length.

    Raises:
        ValueError: the prompts have different numbers of words.
    """
    before, after = source.spaced, target.spaced
    if not swappable(source, target):
        raise ValueError(
            f"Word swap needs prompts of as many words, but the source has {len(before)} ({_written(before)}) and the "
            f"target {len(after)} ({_written(after)}). Choose refine, which allows words to be added and taken away."
        )
    transfer = torch.zeros(source.length, target.length)
    pairs = list(zip(before, after, strict=True))
    if compat:
        _walk(transfer, [(_positions(old), _positions(new)) for old, new in pairs if not _same(old, new)])
    else:
        for old, new in [*(part for pair in pairs for part in _parts(*pair)), *_around(source, target)]:
            _share(transfer, old, new)
    return TokenMap(transfer, torch.zeros(target.length))


def swappable(source: Prompt, target: Prompt) -> bool:
    """Whether two prompts have as many words, so that they can be exchanged one for one."""
    return len(source.spaced) == len(target.spaced)


def _written(words: Sequence[Sequence[PromptWord]]) -> str:
    return " ".join("".join(part.text for part in word) for word in words)


def _positions(word: Sequence[PromptWord]) -> tuple[int, ...]:
    return tuple(position for part in word for position in part.positions)


def _same(old: Sequence[PromptWord], new: Sequence[PromptWord]) -> bool:
    return len(old) == len(new) and all(a.same(b) for a, b in zip(old, new, strict=True))


def _parts(old: Sequence[PromptWord], new: Sequence[PromptWord]) -> list[Pair]:
    """What of one word's tokens goes to what of another's."""
    if len(old) != len(new):
        return [(_positions(old), _positions(new))]
    return [(a.positions, b.positions) for a, b in zip(old, new, strict=True)]


def _share(transfer: Tensor, old: Sequence[int], new: Sequence[int]) -> None:
    if len(old) == len(new):
        transfer[list(old), list(new)] = 1
    elif old and new:
        transfer[torch.tensor(old)[:, None], torch.tensor(new)] = 1 / len(new)


def _around(source: Prompt, target: Prompt) -> list[Pair]:
    """Begin, end and padding of each part, place by place; where one prompt has more, the rest is left out."""

    def parts(prompt: Prompt) -> list[list[int]]:
        content, starts = set(prompt.content), range(0, prompt.length, CHUNK)
        return [[p for p in range(s, min(s + CHUNK, prompt.length)) if p not in content] for s in starts]

    both = zip_longest(parts(source), parts(target), fillvalue=[])
    return [((a,), (b,)) for old, new in both for a, b in zip(old, new, strict=False)]


def _walk(transfer: Tensor, changed: list[Pair]) -> None:
    """The official code's walk along both prompts."""
    i = j = at = 0
    while i < transfer.shape[0] and j < transfer.shape[1]:
        if at < len(changed) and changed[at][0][0] == i:
            old, new = changed[at]
            _share(transfer, old, new)
            i, j, at = i + len(old), j + len(new), at + 1
            continue
        if at < len(changed):
            transfer[i, j] = 1
        elif j < transfer.shape[0]:
            transfer[j, j] = 1
        i, j = i + 1, j + 1


def factors(prompt: Prompt, weights: Sequence[tuple[str, float]]) -> Tensor:
    """Factors (L,) of a prompt's tokens: 1 but for the words that are named.

    Args:
        weights: words or phrases as `find_word` takes them, with their factors; negative ones turn a word away.

    Raises:
        ValueError: a word is not in the prompt.
    """
    result = torch.ones(prompt.length)
    for phrase, factor in weights:
        result[list(find_word(prompt, phrase))] = factor
    return result


def find_word(prompt: Prompt, phrase: str) -> tuple[int, ...]:
    """Positions of a word's tokens; "cat#2" means the second cat only.

    Raises:
        ValueError: the word is not in the prompt, or not that often.
    """
    word, mark, number = phrase.rpartition("#")
    if mark and number.strip().isdigit():
        return prompt.find(word, int(number))
    return prompt.find(phrase)


def find_words(prompt: Prompt, phrases: str | Sequence[str]) -> tuple[int, ...]:
    """Positions of several words' tokens: a sequence of words, or a text with commas between them; see `find_word`."""
    named = split_words(phrases) if isinstance(phrases, str) else phrases
    return tuple(dict.fromkeys(position for word in named for position in find_word(prompt, word)))
