"""What a piece of a program costs on a device, and which line it was that cost it."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACK = HERE.parents[1]
WAIT, TO_DEVICE = 0, 1
EVENTS = {WAIT: "waits", TO_DEVICE: "copies to the device"}


@dataclass
class Counts:
    """What a piece of a program cost.

    Attributes:
        waits: how often the host read a value, or copied from the device. to_device: copies to it.
        live: bytes in use at its end beyond those at its beginning; peak: at most.
        sites: how often each Python line was the cause of (event, line).
    """

    waits: int = 0
    to_device: int = 0
    live: int = 0
    peak: int = 0
    allocations: int = 0
    sites: Counter[tuple[int, str]] = field(default_factory=Counter)

    def table(self) -> str:
        """Lines of source by how often they waited or copied."""
        lines = [f"{number:6d} {EVENTS[event]:20s} {site}" for (event, site), number in self.sites.most_common()]
        return "\n".join(lines)


def site() -> str:
    """The line of the pack that is running, else that of the host."""
    frame, outer = sys._getframe(2), None
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACK) and HERE not in path.parents:
            return f"{path.relative_to(PACK)}:{frame.f_lineno} {frame.f_code.co_qualname}"
        if outer is None and "torch" not in path.parts:
            outer = f"{'/'.join(path.parts[-2:])}:{frame.f_lineno} {frame.f_code.co_qualname}"
        frame = frame.f_back
    return outer or "a thread of PyTorch's"
