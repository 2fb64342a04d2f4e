"""The host's `io` for the schemas of our nodes, on hosts too that do not know all that they say.

Hosts before 0.16 know no inputs that are folded away (*advanced*) and no other names to search a node by
(*search_aliases*). There both are left out; a newer host's `io` is handed on as it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from comfy_api.latest import io

YOUNGER = ("advanced", "search_aliases")
"""What schemas and inputs are told that the oldest hosts do not know; anything else that is unknown is an error."""


def _known(make: Callable[..., Any], name: str) -> bool:
    return name in inspect.signature(make).parameters


def _forgiving(make: Callable[..., Any]) -> Callable[..., Any]:
    """The same constructor, which leaves out what it does not know of YOUNGER."""
    unknown = [name for name in YOUNGER if not _known(make, name)]

    def made(*args: Any, **kwargs: Any) -> Any:
        return make(*args, **{name: value for name, value in kwargs.items() if name not in unknown})

    return made


class _TolerantType:
    """A type of sockets with a widget, such as `io.Int`."""

    def __init__(self, original: Any) -> None:
        self._original = original
        self.Input = _forgiving(original.Input)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


class TolerantIO:
    """The host's `io`, with schemas and widgets' inputs that leave out what the host does not know of YOUNGER.

    Args:
        original: `comfy_api.latest.io`.
    """

    def __init__(self, original: Any) -> None:
        self._original = original
        self.Schema = _forgiving(original.Schema)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._original, name)
        made = getattr(found, "Input", None)
        is_widget = isinstance(made, type) and issubclass(made, self._original.WidgetInput)
        return _TolerantType(found) if is_widget else found


def is_old(original: Any) -> bool:
    """Whether a host's `io` lacks something of YOUNGER."""
    return not (_known(original.Schema, "search_aliases") and _known(original.Int.Input, "advanced"))


if is_old(io):  # through globals(), so that a type checker goes on seeing the host's own module
    globals()["io"] = TolerantIO(io)

__all__ = ["YOUNGER", "TolerantIO", "io", "is_old"]
