"""Words with numbers as a node's text field holds them: one per line, such as "red: 2" or "cat#2: 0.1-0.8"."""

from __future__ import annotations

import re

LARGEST_FACTOR = 65504.0
"""The largest number of half precision, which a factor may not exceed either way."""
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
_LINE = re.compile(rf"\s*(?P<word>.*\S)\s*:\s*(?P<first>{_NUMBER})\s*(?:-\s*(?P<second>{_NUMBER})\s*)?")


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def word_weights(text: str) -> list[tuple[str, float]]:
    """Words and factors.

    Raises:
        ValueError: a line of another form, or a factor beyond LARGEST_FACTOR.
    """
    found = []
    for line in _lines(text):
        match = _LINE.fullmatch(line)
        if match is None or match["second"] is not None:
            raise ValueError(f'{line!r} is no word with a factor. Write one per line, such as "red: 2".')
        factor = float(match["first"])
        if abs(factor) > LARGEST_FACTOR:
            raise ValueError(
                f"Give {match['word']!r} a factor from -{LARGEST_FACTOR:g} to {LARGEST_FACTOR:g}: {factor:g} is beyond "
                "what half precision can hold."
            )
        found.append((match["word"], factor))
    return found


def word_windows(text: str) -> list[tuple[str, float, float]]:
    """Words and shares of the steps, start and end.

    Raises:
        ValueError: a line of another form, or a share outside 0 to 1.
    """
    found = []
    for line in _lines(text):
        match = _LINE.fullmatch(line)
        if match is None or match["second"] is None:
            raise ValueError(f'{line!r} is no word with a window. Write one per line, such as "red: 0-0.4".')
        start, end = float(match["first"]), float(match["second"])
        if not 0 <= start <= end <= 1:
            raise ValueError(f"{line!r}: a window is a share of the steps, from 0 to 1, start before end.")
        found.append((match["word"], start, end))
    return found


def split_words(text: str) -> list[str]:
    """Words between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]
