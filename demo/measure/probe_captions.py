"""The captions whose attention maps are probed, and what is asked of the maps (Free-Prompt-Editing, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

from bundle import world

COLOURS = ("green", "white", "orange", "yellow", "red", "blue", "black", "purple", "pink", "brown")
ANIMALS = ("dog", "giraffe", "horse", "lion", "rabbit", "sheep", "cat", "monkey", "leopard", "tiger")
"""Ten of each, as in the paper, for models that know them."""
OBJECTS = ("car", "bowl")
"""What is coloured."""


@dataclass(frozen=True)
class Caption:
    """A caption.

    Attributes:
        words: of it, by their part: "a", "colour", "noun".
        classes: what it says: its "colour", its "noun", or both.
    """

    text: str
    words: dict[str, str]
    classes: dict[str, str]


@dataclass(frozen=True)
class Question:
    """What one classifier is asked.

    Attributes:
        part: the word whose cross-attention maps are given, by its part of the caption; None for self-attention.
        asks: "colour" or "noun".
    """

    part: str | None
    asks: str

    def __str__(self) -> str:
        return f"{self.asks} by " + {None: "self-attention", "a": 'the map of "a"'}.get(
            self.part, f"the {self.part}'s map"
        )


TABLES: dict[str, tuple[Question, ...]] = {
    "cross-attention of the word": (Question("noun", "noun"), Question("colour", "colour")),
    "self-attention": (Question(None, "noun"), Question(None, "colour")),
    "cross-attention of other words": (Question("a", "colour"), Question("noun", "colour")),
}
"""The paper's Tables 1, 2 and 3."""
QUESTIONS = tuple(question for asked in TABLES.values() for question in asked)


def demo_captions() -> list[Caption]:
    """Every shape in every colour that the demo world has."""
    return [_coloured(colour, shape, {"noun": shape}) for colour in world.COLOURS for shape in world.SHAPES]


def paper_captions() -> list[Caption]:
    """The paper's: coloured cars and other objects, and animals in the park."""
    coloured = [_coloured(colour, thing, {}) for colour in COLOURS for thing in OBJECTS]
    return [
        *coloured,
        *(Caption(f"a {name} standing in the park", {"a": "a", "noun": name}, {"noun": name}) for name in ANIMALS),
    ]


def _coloured(colour: str, noun: str, more: dict[str, str]) -> Caption:
    """With "a" before every colour: "an" would tell which it is."""
    return Caption(f"a {colour} {noun}", {"a": "a", "colour": colour, "noun": noun}, {"colour": colour, **more})
