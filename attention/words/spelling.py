"""What the host's tokenizers call their tokens, read as text.

CLIP marks where a word ends (</w>), SentencePiece (T5, Gemma) where one begins, and byte-level vocabularies (Qwen,
Mistral) write each byte as a letter (Sennrich et al. 2016; Kudo and Richardson 2018; Radford et al. 2019).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from functools import cache

UNKNOWN = "\N{REPLACEMENT CHARACTER}"
"""What stands for letters that a vocabulary does not have."""
_BEGIN = "\N{LOWER ONE EIGHTH BLOCK}"
_SPACE = "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_WORD = re.compile(r"\s*('(?:s|t|re|ve|m|ll|d)|[^\W_]+|(?:[^\w\s]|_)+)(?:\s*\Z)?", re.IGNORECASE)
"""A word as CLIP's tokenizer cuts them, with the space around it."""


def is_clip(vocabulary: Collection[str]) -> bool:
    """Whether a vocabulary is CLIP's, by its entries."""
    return "a</w>" in vocabulary


def reader_of(vocabulary: Collection[str]) -> Callable[[str], bytes]:
    """How entries of a vocabulary are read as UTF-8, of which an entry may hold a part of a letter only.

    Raises:
        ValueError: it is neither SentencePiece's nor of bytes.
    """
    if _BEGIN in vocabulary:
        return _piece
    if _SPACE in vocabulary:
        return _bytes
    raise ValueError(
        "Connect the CLIP of SD1.x, SD2.x, SDXL, SD3, Flux, Chroma, Qwen-Image, Z-Image or Lumina 2: how this text "
        "encoder's vocabulary spells words is not known."
    )


def words_in(text: str) -> Iterator[tuple[str, int, int]]:
    """Words of a text, each with where it begins and ends; spaces belong to the word behind, or else to the last."""
    for match in _WORD.finditer(text):
        yield match[1], match.start(), match.end()


def _piece(entry: str) -> bytes:
    """An entry of SentencePiece."""
    if entry == "<unk>":
        return UNKNOWN.encode()
    byte = _BYTE.fullmatch(entry)
    return bytes([int(byte[1], 16)]) if byte else entry.replace(_BEGIN, " ").encode()


def _bytes(entry: str) -> bytes:
    """An entry of a vocabulary of bytes; special tokens are written as they are."""
    table = _letters()
    return b"".join(bytes([table[letter]]) if letter in table else letter.encode() for letter in entry)


@cache
def _letters() -> dict[str, int]:
    """Bytes by their letter: those that can be printed stand for themselves, the others for letters from 256 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
