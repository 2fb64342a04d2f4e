"""Whether something is still made of the same objects.

What other packs put on a model cannot be compared by content, so objects are compared by identity: the host hands the
same ones on as long as their nodes need not run again.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch


class _Same:
    """An object that equals itself alone, and nothing once it is gone."""

    def __init__(self, value: Any) -> None:
        try:
            self._get: Callable[[], Any] = weakref.ref(value)
        except TypeError:  # of a kind that nothing refers to weakly
            self._get = lambda: value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._get() is not None and self._get() is other._get()

    __hash__ = object.__hash__


@dataclass(frozen=True)
class Sameness:
    """What something depends on.

    Attributes:
        parts: what each consists of, by what is said where it is not the same.
    """

    parts: dict[str, list[Any]]

    def difference(self, other: Sameness) -> str:
        """In words what is not the same; empty if all is."""
        return next((said for said, part in self.parts.items() if part != other.parts[said]), "")


def leaves(value: Any, stands_for: Callable[[Any], Any]) -> Iterator[Any]:
    """What a nest of containers holds, in order and comparable.

    Args:
        stands_for: what is looked at in an object's place; None for nothing.
    """
    value = stands_for(value)
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            held = list(leaves(value[key], stands_for))
            yield from (str(key), *held) if held else ()
    elif isinstance(value, list | tuple | set):
        for entry in value:
            yield from leaves(entry, stands_for)
    elif isinstance(value, MethodType):  # made anew whenever it is asked for
        yield from (_Same(value.__self__), _Same(value.__func__))
    elif isinstance(value, str | int | float | torch.dtype):
        yield value
    elif value is not None:
        yield _Same(value)
