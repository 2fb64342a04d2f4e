"""The host's tokenizers: which tokens a text becomes, and which of them are its words.

The host's own tokenizer says what the tokens are, so weights, embeddings, templates and long prompts are as it reads
them. A word is what a person calls one: letters and digits without a space between them, whatever the number of
tokens; other signs stand for themselves. Where one token holds parts of two words, as the hyphen and what is behind it
for Qwen, it is one of both.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

from comfy.sd1_clip import escape_important, token_weights, unescape_important
from torch import Tensor

from .spelling import is_clip, reader_of, words_in
from .tokens import PromptWord, Token


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A text encoder's tokenizer of the host.

    Attributes:
        host: what a CLIP calls its tokenizer.
        encoder: the host's name of the text encoder, such as "l" or "t5xxl".
        options: what the CLIP was told of lengths and padding.
    """

    host: Any = field(repr=False)
    encoder: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def _own(self) -> Any:
        return getattr(self.host, f"clip_{self.encoder}", None) or getattr(self.host, self.encoder)

    @cached_property
    def _template(self) -> tuple[str, str]:
        """What the host puts ahead of a prompt and behind it."""
        ahead, _, behind = getattr(self.host, "llama_template", "{}").partition("{}")
        return ahead, behind

    def read(self, text: str) -> tuple[tuple[Token, ...], tuple[PromptWord, ...]]:
        """The tokens and words of a text."""
        given = {"tokenizer_options": dict(self.options)} if self.options else {}
        tokens = self._tokens(self.host.tokenize_with_weights(text, True, **given)[self.encoder])
        if is_clip(self._own.inv_vocab.values()):
            return tokens, tuple(self._words(text, [token for token in tokens if token.word], {}))
        tokens, spelled = self._without_template(tokens)
        return tokens, tuple(self._words(text, [token for token in tokens if token.word], spelled))

    def _tokens(self, chunks: list[list[tuple[Any, float, int]]]) -> tuple[Token, ...]:
        """The host's tokens (value, weight, word), part by part."""
        found: list[Token] = []
        for part, chunk in enumerate(chunks):
            pads = self._pads([(_key(value), word) for value, _, word in chunk])
            for place, (value, weight, word) in enumerate(chunk):
                found.append(Token(len(found), _key(value), word, float(weight), place in pads, part))
        return tuple(found)

    def _pads(self, chunk: list[tuple[int, int]]) -> set[int]:
        """Places of what fills a part (key, word) up, on whichever side; of end tokens in a row the first is none."""
        own = self._own
        left = bool(getattr(own, "pad_left", False))
        places = list(range(len(chunk))) if left else list(range(len(chunk) - 1, -1, -1))
        count = next((i for i, place in enumerate(places) if chunk[place] != (own.pad_token, 0)), len(chunk))
        ends = int(count > 0 and not left and own.pad_token == own.end_token)
        return set(places[: count - ends])

    def _without_template(self, tokens: tuple[Token, ...]) -> tuple[tuple[Token, ...], dict[int, bytes]]:
        """The tokens, those of a template marked as no words, and what of the prompt each of the others spells."""
        reader, inside = reader_of(self._own.inv_vocab.values()), [token for token in tokens if token.word]
        pieces = [b"" if token.id is None else reader(self._own.inv_vocab[token.id]) for token in inside]
        whole, ends = b"".join(pieces), [0, *accumulate(map(len, pieces))]
        ahead, behind = (side.encode() for side in self._template)
        framed = whole.startswith(ahead) and whole.endswith(behind)
        first, last = (len(ahead), len(whole) - len(behind)) if framed else (0, len(whole))
        spelled: dict[int, bytes] = {}
        for token, start, end in zip(inside, ends, ends[1:], strict=False):
            if max(start, first) < min(end, last) or (token.id is None and first <= start <= last):
                spelled[token.position] = whole[max(start, first) : min(end, last)]
        marked = tuple(token if token.position in spelled else replace(token, word=0) for token in tokens)
        return marked, spelled

    def _words(self, text: str, content: list[Token], spelled: Mapping[int, bytes]) -> Iterator[PromptWord]:
        """Put tokens together that spell one word.

        CLIP's tokenizer ends a token with </w> where its own words end; it cuts digits one by one. All cut a word
        where its weight changes. Those are joined again where the text has no space between them.
        """
        segments = self._segments(text)
        plain = unicodedata.normalize("NFC", "".join(segments)).lower()
        last, cursor = PromptWord("", ()), 0
        for word in self._pieces(segments, content, spelled):
            place = plain.find(word.text.lower(), cursor)
            behind = place == cursor and bool(last.positions)
            cursor = cursor if place < 0 else place + len(word.text)
            if behind and not last.keys and not word.keys and last.text[-1:].isalnum() and word.text[:1].isalnum():
                both = tuple(dict.fromkeys(last.positions + word.positions))
                last = PromptWord(last.text + word.text, both, (), last.attached)
                continue
            if last.positions:
                yield last
            last = replace(word, attached=behind)
        if last.positions:
            yield last

    def _segments(self, text: str) -> list[str]:
        """Stretches of one weight; a prompt in a template is read without weights."""
        if any(self._template) or getattr(self._own, "disable_weights", False):
            return [unescape_important(escape_important(text))]
        return [unescape_important(segment) for segment, _ in token_weights(escape_important(text), 1.0)]

    def _pieces(self, segments: list[str], content: list[Token], spelled: Mapping[int, bytes]) -> Iterator[PromptWord]:
        """The tokenizer's own words, and the embeddings."""
        groups = list(self._groups(content))
        names = [name for segment in segments for name in re.findall(r"(?:^|\s)embedding:([^\s<\[]+)", segment)]
        if len(names) != sum(group[0].id is None for group in groups):
            names = ["?"] * len(groups)  # one of them is not installed, and the host leaves it out
        for group in groups:
            positions, keys = tuple(t.position for t in group), tuple(t.key for t in group)
            if group[0].id is None:
                yield PromptWord(f"embedding:{names.pop(0).rstrip(',')}", positions, keys)
            elif spelled:
                yield from _cut(positions, [spelled[position] for position in positions])
            else:
                yield PromptWord(self._own.tokenizer.decode(list(keys)).strip(), positions)

    def _groups(self, content: list[Token]) -> Iterator[list[Token]]:
        """Cut tokens where the tokenizer's own words or embeddings end."""
        group: list[Token] = []
        for token in content:
            if group and (group[-1].word != token.word or self._ends(group[-1])):
                yield group
                group = []
            group.append(token)
        if group:
            yield group

    def _ends(self, token: Token) -> bool:
        return token.id is not None and self._own.inv_vocab[token.id].endswith(("</w>", "|>"))


def _cut(positions: tuple[int, ...], pieces: list[bytes]) -> Iterator[PromptWord]:
    """The words of a stretch of text, given what each of its tokens spells."""
    text = b"".join(pieces).decode("utf-8", "surrogateescape")
    ends = [0, *accumulate(len(letter.encode("utf-8", "surrogateescape")) for letter in text)]
    bounds = [0, *accumulate(map(len, pieces))]
    for word, start, end in words_in(text):
        inside = [i for i in range(len(pieces)) if bounds[i] < ends[end] and bounds[i + 1] > ends[start]]
        yield PromptWord(word, tuple(positions[i] for i in inside))


def _key(value: Any) -> int:
    """A token's id, or a negative number made of an embedding's vector (C,)."""
    if isinstance(value, Tensor):
        return -1 - zlib.crc32(value.detach().float().cpu().contiguous().numpy().tobytes())
    return int(value)


def along_the_axis(tokens: Iterable[Sequence[Token]]) -> tuple[Token, ...]:
    """Tokens of text encoders whose texts follow each other, numbered through."""
    found: list[Token] = []
    for encoder, own in enumerate(tokens):
        first, part = len(found), found[-1].part + 1 if found else 0
        found += [replace(t, position=t.position + first, part=t.part + part, encoder=encoder) for t in own]
    return tuple(found)
