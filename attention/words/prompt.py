"""Words of a prompt and where they stand in the text that the network reads.

The host's own tokenizer says what the tokens are, so weights, embeddings and long prompts are as it reads them. A
word here is what a person calls one: letters and digits without a space between them, whatever the number of
tokens; other signs stand for themselves.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from comfy.sd1_clip import escape_important, token_weights, unescape_important
from torch import Tensor

ENCODERS = ("l", "g", "h")
"""The host's names of the text encoders of SD1.x, SDXL and SD2.x."""


@dataclass(frozen=True)
class Token:
    """One place of the context's token axis.

    Attributes:
        position: index on that axis, 0 to length - 1.
        key: the tokenizer's id; for a vector of an embedding a negative number, the same for the same vector.
        word: the host's number of the piece of text or embedding that it comes from; 0 for begin, end and padding.
        weight: as in "(red:1.2)".
    """

    position: int
    key: int
    word: int
    weight: float

    @property
    def id(self) -> int | None:
        """The tokenizer's id, None for a vector of an embedding."""
        return self.key if self.key >= 0 else None


@dataclass(frozen=True)
class PromptWord:
    """A word and the positions of its tokens; an embedding is one word.

    Attributes:
        text: as the tokenizer spells it (lower case), or "embedding:name".
        keys: of its tokens, when it is an embedding, which is known by its vectors and not by its name.
        attached: whether it stands behind the word before it without a space, as a comma does.
    """

    text: str
    positions: tuple[int, ...]
    keys: tuple[int, ...] = ()
    attached: bool = False

    def same(self, other: PromptWord) -> bool:
        """Whether two words are the same text or the same embedding."""
        return self.keys == other.keys and (bool(self.keys) or self.text == other.text)


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt with the places of its words.

    Attributes:
        text: as it was given.
        tokens: one for every place of the context's token axis, in order.
        spelled: its words in order.
        tokenizer: reads phrases as it read the prompt.
        states: (1, L, C), what the encoder made of it; None if it was only read.
    """

    text: str
    tokens: tuple[Token, ...]
    spelled: tuple[PromptWord, ...]
    tokenizer: Tokenizer = field(repr=False)
    states: Tensor | None = field(default=None, repr=False)

    @property
    def length(self) -> int:
        """Places of the context's token axis, 77 for each part that the encoder reads."""
        return len(self.tokens)

    @property
    def ids(self) -> tuple[int, ...]:
        """The key of every token, begin, end and padding included."""
        return tuple(token.key for token in self.tokens)

    @property
    def content(self) -> tuple[int, ...]:
        """Positions of all tokens that are neither begin, end nor padding."""
        return tuple(token.position for token in self.tokens if token.word)

    @property
    def words(self) -> tuple[str, ...]:
        """The words as the tokenizer spells them."""
        return tuple(word.text for word in self.spelled)

    @property
    def spaced(self) -> tuple[tuple[PromptWord, ...], ...]:
        """The words by what stands between two spaces: "a well-known cat," is three of them."""
        found: list[list[PromptWord]] = []
        for word in self.spelled:
            if found and word.attached:
                found[-1].append(word)
            else:
                found.append([word])
        return tuple(map(tuple, found))

    def occurrences(self, phrase: str) -> tuple[tuple[int, ...], ...]:
        """Positions of each place where a phrase stands, in order and without overlap.

        Raises:
            ValueError: the phrase is empty or nowhere in the prompt.
        """
        wanted = self.tokenizer.read(phrase)[1]
        if not wanted:
            raise ValueError(f"Name a word of the prompt: {self._listed()}.")
        found, at = [], 0
        while at + len(wanted) <= len(self.spelled):
            here = self.spelled[at : at + len(wanted)]
            if all(a.same(b) for a, b in zip(here, wanted, strict=True)):
                found.append(tuple(p for word in here for p in word.positions))
                at += len(wanted)
            else:
                at += 1
        if not found:
            raise ValueError(f"{phrase!r} is not in the prompt. Its words are: {self._listed()}.")
        return tuple(found)

    def find(self, phrase: str, occurrence: int | None = None) -> tuple[int, ...]:
        """Positions of a word, or of a phrase of several words, on the context's token axis.

        Args:
            phrase: spelled as in the prompt, capitals and spaces aside; an embedding as "embedding:name".
            occurrence: 1 for the first place where it stands; None for all of them together.

        Raises:
            ValueError: the phrase is empty or not there, or not that often.
        """
        found = self.occurrences(phrase)
        if occurrence is None:
            return tuple(p for positions in found for p in positions)
        if not 1 <= occurrence <= len(found):
            raise ValueError(
                f"{phrase!r} stands {len(found)} time(s) in the prompt; occurrence {occurrence} was asked for. "
                f"Its words are: {self._listed()}."
            )
        return found[occurrence - 1]

    def _listed(self) -> str:
        return ", ".join(dict.fromkeys(self.words)) or "none, for it is empty"


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A text encoder's tokenizer of the host.

    Attributes:
        host: what a CLIP calls its tokenizer.
        encoder: which of its text encoders, one of ENCODERS.
    """

    host: Any = field(repr=False)
    encoder: str

    @cached_property
    def _own(self) -> Any:
        return getattr(self.host, f"clip_{self.encoder}")

    def read(self, text: str) -> tuple[tuple[Token, ...], tuple[PromptWord, ...]]:
        """The tokens and words of a text."""
        chunks = self.host.tokenize_with_weights(text, True)[self.encoder]
        tokens = _tokens(chunks)
        return tokens, tuple(self._words(text, [token for token in tokens if token.word]))

    def _words(self, text: str, content: list[Token]) -> Iterator[PromptWord]:
        """Put tokens together that spell one word.

        The tokenizer ends a token with </w> where its own words end. It cuts digits one by one and a word where
        its weight changes; those are joined again where the text has no space between them.
        """
        segments = [unescape_important(segment) for segment, _ in token_weights(escape_important(text), 1.0)]
        plain = unicodedata.normalize("NFC", "".join(segments)).lower()
        last, cursor = PromptWord("", ()), 0
        for word in self._pieces(segments, content):
            place = plain.find(word.text.lower(), cursor)
            behind = place == cursor and bool(last.positions)
            cursor = cursor if place < 0 else place + len(word.text)
            if behind and not last.keys and not word.keys and last.text[-1:].isalnum() and word.text[:1].isalnum():
                last = PromptWord(last.text + word.text, last.positions + word.positions, (), last.attached)
                continue
            if last.positions:
                yield last
            last = replace(word, attached=behind)
        if last.positions:
            yield last

    def _pieces(self, segments: list[str], content: list[Token]) -> Iterator[PromptWord]:
        """The tokenizer's own words, and the embeddings."""
        groups = list(self._groups(content))
        names = [name for segment in segments for name in re.findall(r"(?:^|\s)embedding:([^\s<\[]+)", segment)]
        if len(names) != sum(group[0].id is None for group in groups):
            names = ["?"] * len(groups)  # one of them is not installed, and the host leaves it out
        for group in groups:
            positions, keys = tuple(t.position for t in group), tuple(t.key for t in group)
            if group[0].id is None:
                yield PromptWord(f"embedding:{names.pop(0).rstrip(',')}", positions, keys)
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


def _tokens(chunks: list[list[tuple[Any, float, int]]]) -> tuple[Token, ...]:
    flat = [entry for chunk in chunks for entry in chunk]
    return tuple(Token(i, _key(value), word, float(weight)) for i, (value, weight, word) in enumerate(flat))


def _key(value: Any) -> int:
    """A token's id, or a negative number made of an embedding's vector (C,)."""
    if isinstance(value, Tensor):
        return -1 - zlib.crc32(value.detach().float().cpu().contiguous().numpy().tobytes())
    return int(value)


def read_prompt(clip: Any, text: str) -> Prompt:
    """The words of a text as a host CLIP reads it.

    Raises:
        ValueError: a CLIP of another family, or an embedding that does not fit the text encoders.
    """
    chunks = clip.tokenize(text, return_word_ids=True)
    encoders = [name for name in chunks if name in ENCODERS and hasattr(clip.tokenizer, f"clip_{name}")]
    if not encoders or len(encoders) != len(chunks):
        raise ValueError(
            f"Prompt with Words knows the text encoders of SD1.x, SD2.x and SDXL; this CLIP has {', '.join(chunks)}. "
            "Connect the CLIP of such a checkpoint."
        )
    for name in encoders:
        _check_embeddings(clip, name, chunks[name])
    read = {name: _tokens(chunks[name]) for name in encoders}
    layouts = {tuple(token.word for token in tokens) for tokens in read.values()}
    if len(layouts) > 1:
        raise ValueError(
            "The two text encoders place the prompt's words differently, because an embedding has more vectors for "
            "one than for the other. Use an embedding made for this model."
        )
    tokenizer = Tokenizer(clip.tokenizer, encoders[0])
    tokens, words = tokenizer.read(text)
    return Prompt(text, tokens, words, tokenizer)


def _check_embeddings(clip: Any, encoder: str, chunks: list[list[tuple[Any, float, int]]]) -> None:
    """The host leaves vectors of another width out, and everything behind them moves."""
    widths = {value.shape[-1] for chunk in chunks for value, *_ in chunk if isinstance(value, Tensor)}
    if not widths:
        return
    own = getattr(clip.cond_stage_model, f"clip_{encoder}").transformer.get_input_embeddings().weight.shape[-1]
    if widths != {own}:
        raise ValueError(
            f"An embedding in the prompt has vectors of {', '.join(map(str, sorted(widths)))} numbers, but text "
            f"encoder {encoder!r} takes {own}. Use an embedding made for this model."
        )
