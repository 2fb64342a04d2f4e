"""Numbers of the device that are wanted on the CPU: collected, and read together in one wait for the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Readings:
    """What has been asked for and not been told yet."""

    def __init__(self) -> None:
        self._asked: list[tuple[list[Tensor], Callable[..., None]]] = []

    def ask(self, numbers: Sequence[Tensor], told: Callable[..., None]) -> None:
        """Have `told` called with numbers (tensors of one element, of one device) as floats, at the next reading."""
        self._asked.append(([number.detach().reshape(1) for number in numbers], told))

    def read(self) -> None:
        """Wait for the device, and tell everything in the order in which it was asked for.

        Raises:
            ValueError: what a check that is told finds wrong; what comes after it is not told any more.
        """
        asked, self._asked = self._asked, []
        if not asked:
            return
        found = iter(torch.cat([number for numbers, _ in asked for number in numbers]).tolist())
        for numbers, told in asked:
            told(*(float(next(found)) for _ in numbers))
