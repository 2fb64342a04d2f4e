"""Tokens and words: what stands at each place of the text that a network reads."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Token:
    """One place of the context's token axis.

    Attributes:
        position: index on that axis, 0 to length - 1.
        key: the tokenizer's id; for a vector of an embedding a negative number, the same for the same vector.
        word: the host's number of the piece of text or embedding that it comes from; 0 for begin, end and padding, and
            for a template around the prompt.
        weight: as in "(red:1.2)".
        pad: whether it fills the text up to a length.
        part: which of the parts that are encoded at once, from 0: a long prompt is several for CLIP, of 77 places each.
        encoder: which of the text encoders whose texts follow each other on the axis, from 0.
    """

    position: int
    key: int
    word: int
    weight: float
    pad: bool = False
    part: int = 0
    encoder: int = 0

    @property
    def id(self) -> int | None:
        """The tokenizer's id, None for a vector of an embedding."""
        return self.key if self.key >= 0 else None


@dataclass(frozen=True)
class PromptWord:
    """A word and the positions of its tokens; an embedding is one word.

    Attributes:
        text: as the tokenizer spells it (CLIP's in lower case), or "embedding:name".
        keys: of its tokens, when it is an embedding, which is known by its vectors and not by its name.
        attached: whether it stands behind the word before it without a space, as a comma does.
    """

    text: str
    positions: tuple[int, ...]
    keys: tuple[int, ...] = ()
    attached: bool = False

    def same(self, other: PromptWord) -> bool:
        """Whether two words are the same text, capitals aside, or the same embedding."""
        return self.keys == other.keys and (bool(self.keys) or self.text.lower() == other.text.lower())

    def moved(self, shift: int) -> PromptWord:
        """The word with its tokens further on."""
        return replace(self, positions=tuple(position + shift for position in self.positions))
