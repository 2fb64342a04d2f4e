"""Which token of the source prompt gives its attention map to which token of the target prompt.

All of Prompt-to-Prompt's rewritings of a cross-attention map are linear in the two maps, so each is one record:
a matrix for the source's map and a factor per token for the target's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from .lines import split_words
from .prompt import Prompt
from .tokens import PromptWord, Token

CHUNK = 77
"""Places of one part of a prompt of CLIP's; the host gives longer ones as several."""
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
    """Positions of all tokens but padding: begin, words and end of each part, and what is around the words."""
    return [token.position for token in prompt.tokens if not token.pad]


def align_refined(source: Prompt, target: Prompt) -> TokenMap:
    """Words are added or taken away: tokens that both prompts have get the source's map, new ones keep their own.

    Padding takes the source's map of the same place. Text encoders that follow each other are aligned each for itself.
    """
    transfer, keep = torch.zeros(source.length, target.length), torch.ones(target.length)
    for old, new in zip(source.encoders, target.encoders, strict=False):
        before, after = ([token for token in tokens if not token.pad] for tokens in (old, new))
        found = align([token.key for token in before], [token.key for token in after])
        order = -1 if old[0].pad or new[0].pad else 1  # pads ahead are counted from the words on
        same = zip(old[::order], new[::order], strict=False)
        origins = {token.position: origin.position for origin, token in same}
        for token, index in zip(after, found, strict=True):
            origins.pop(token.position, None)
            if index is not None:
                origins[token.position] = before[index].position
        for position, origin in origins.items():
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
    for one, other in zip(source.encoders, target.encoders, strict=False):
        if compat:
            changed = [(_whole(old), _whole(new)) for old, new in pairs if not _same(old, new)]
            here = transfer[one[0].position : one[-1].position + 1, other[0].position : other[-1].position + 1]
            _walk(here, [(_inside(one, old, one[0]), _inside(other, new, other[0])) for old, new in changed])
            continue
        for old, new in [part for pair in pairs for part in _parts(*pair)]:
            _share(transfer, _inside(one, old), _inside(other, new))
        for a, b in _around(one, other):
            transfer[a, b] = 1
    return TokenMap(transfer, torch.zeros(target.length))


def swappable(source: Prompt, target: Prompt) -> bool:
    """Whether two prompts have as many words, so that they can be exchanged one for one."""
    return len(source.spaced) == len(target.spaced)


def _written(words: Sequence[Sequence[PromptWord]]) -> str:
    return " ".join("".join(part.text for part in word) for word in words)


def _whole(word: Sequence[PromptWord]) -> tuple[int, ...]:
    """The positions of a word of several parts, each once."""
    return tuple(dict.fromkeys(position for part in word for position in part.positions))


def _inside(tokens: Sequence[Token], positions: Sequence[int], first: Token | None = None) -> tuple[int, ...]:
    """Those of some positions that are one text encoder's; counted from its first token if that is given."""
    start = 0 if first is None else first.position
    return tuple(p - start for p in positions if tokens[0].position <= p <= tokens[-1].position)


def _same(old: Sequence[PromptWord], new: Sequence[PromptWord]) -> bool:
    return len(old) == len(new) and all(a.same(b) for a, b in zip(old, new, strict=True))


def _parts(old: Sequence[PromptWord], new: Sequence[PromptWord]) -> list[Pair]:
    """What of one word's tokens goes to what of another's; parts that share a token are not told apart."""
    shared = any(len(_whole(word)) < sum(len(part.positions) for part in word) for word in (old, new))
    if shared or len(old) != len(new):
        return [(_whole(old), _whole(new))]
    return [(a.positions, b.positions) for a, b in zip(old, new, strict=True)]


def _share(transfer: Tensor, old: Sequence[int], new: Sequence[int]) -> None:
    if len(old) == len(new):
        transfer[list(old), list(new)] = 1
    elif old and new:
        transfer[torch.tensor(old)[:, None], torch.tensor(new)] = 1 / len(new)


def _around(source: Sequence[Token], target: Sequence[Token]) -> list[tuple[int, int]]:
    """Begin, end, padding and template of each part, place by place from the words on; the rest is left out."""
    found: list[tuple[int, int]] = []
    for old, new in zip(_parts_of(source), _parts_of(target), strict=False):
        (ahead, behind), (new_ahead, new_behind) = _sides(old), _sides(new)
        found += zip(reversed(ahead), reversed(new_ahead), strict=False)
        found += zip(behind, new_behind, strict=False)
    return found


def _parts_of(tokens: Sequence[Token]) -> list[list[Token]]:
    return [list(part) for _, part in groupby(tokens, lambda token: token.part)]


def _sides(part: Sequence[Token]) -> tuple[list[int], list[int]]:
    """Positions ahead of a part's words and behind them."""
    words = [i for i, token in enumerate(part) if token.word]
    first, last = (words[0], words[-1] + 1) if words else (0, 0)
    return [token.position for token in part[:first]], [token.position for token in part[last:]]


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
