"""Words with numbers as a node's text field holds them: one per line, such as "red: 2" or "cat#2: 0.1-0.8"."""

from __future__ import annotations

import re

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
_LINE = re.compile(rf"\s*(?P<word>.*\S)\s*:\s*(?P<first>{_NUMBER})\s*(?:-\s*(?P<second>{_NUMBER})\s*)?")


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def word_weights(text: str) -> list[tuple[str, float]]:
    """Words and factors.

    Raises:
        ValueError: a line of another form.
    """
    found = []
    for line in _lines(text):
        match = _LINE.fullmatch(line)
        if match is None or match["second"] is not None:
            raise ValueError(f'{line!r} is no word with a factor. Write one per line, such as "red: 2".')
        found.append((match["word"], float(match["first"])))
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
