"""Rules that say what a field of a file may be, and how a breach of them is told."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 60


class SchemaError(ValueError):
    """A field is not as the table says; the text has the field, what it is, and what was expected."""


def refuse(field: str, found: str, expected: str) -> NoReturn:
    """Raise SchemaError for a field."""
    raise SchemaError(f"Its field {field} is {found}; expected is {expected}.")


def shown(value: Any) -> str:
    """A value in a few characters, whatever it is."""
    try:
        return _REPR.repr(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python prints
        return f"a {type(value).__name__} too long to show"


@dataclass(frozen=True)
class Number:
    """A finite number within two bounds."""

    low: float
    high: float
    whole: bool = False

    def __call__(self, field: str, value: Any) -> None:
        """Raise SchemaError for anything else; a bool is no number."""
        kinds = int if self.whole else int | float
        if isinstance(value, bool) or not isinstance(value, kinds) or not self.low <= value <= self.high:
            kind = "a whole number" if self.whole else "a finite number"
            refuse(field, shown(value), f"{kind} from {self.low:g} to {self.high:g}")


@dataclass(frozen=True)
class Text:
    """A text of some length."""

    most: int

    def __call__(self, field: str, value: Any) -> None:
        """Raise SchemaError for anything else."""
        if not isinstance(value, str) or not 0 < len(value) <= self.most:
            refuse(field, shown(value), f"a text of 1 to {self.most} characters")


@dataclass(frozen=True)
class OneOf:
    """One of some values."""

    values: tuple[Any, ...]

    def __call__(self, field: str, value: Any) -> None:
        """Raise SchemaError for anything else."""
        if not any(type(value) is type(known) and value == known for known in self.values):
            refuse(field, shown(value), "one of " + ", ".join(map(repr, self.values)))


@dataclass(frozen=True)
class Many:
    """A list of one kind."""

    rule: Callable[[str, Any], None]
    least: int
    most: int

    def __call__(self, field: str, value: Any) -> None:
        """Raise SchemaError for anything else."""
        if not isinstance(value, list) or not self.least <= len(value) <= self.most:
            found = f"a list of {len(value)}" if isinstance(value, list) else shown(value)
            refuse(field, found, f"a list of {self.least} to {self.most}")
        for i, entry in enumerate(value):
            self.rule(f"{field}[{i}]", entry)


@dataclass(frozen=True)
class Maybe:
    """A value, or none."""

    rule: Callable[[str, Any], None]

    def __call__(self, field: str, value: Any) -> None:
        """Raise SchemaError for anything else."""
        if value is not None:
            self.rule(field, value)


@dataclass(frozen=True)
class Table:
    """A mapping of known keys."""

    rules: Mapping[str, Callable[[str, Any], None]]
    needed: tuple[str, ...] = ()

    def __call__(self, field: str, value: Any) -> None:
        """Raise SchemaError for anything else."""
        if not isinstance(value, dict):
            refuse(field, shown(value), "a table of " + ", ".join(self.rules))
        known(f"{field}.", value, self.rules)
        for key in self.needed:
            if key not in value:
                refuse(f"{field}.{key}", "missing", "there")
        for key, entry in value.items():
            self.rules[key](f"{field}.{key}", entry)


def known(prefix: str, found: Iterable[str], expected: Iterable[str]) -> None:
    """Raise SchemaError for a name that the format does not have."""
    for name in found:
        if name not in expected:
            refuse(f"{prefix}{name[:80]}", "unknown to this version", "one of " + ", ".join(expected))
