"""Whose rows a UNet call holds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...host.marks import SOURCES
from .run import Run


@dataclass(frozen=True, eq=False)
class Call:
    """One UNet call: whose rows it holds.

    Attributes:
        roles: per chunk of `batch` rows, the key of its conditioning: "positive", "negative", ... or one of
            SOURCES.
        batch: rows per chunk.
        lengths: per chunk, the text tokens of its conditioning.
    """

    run: Run
    roles: tuple[str, ...]
    batch: int
    device: torch.device
    lengths: tuple[int, ...]

    def __deepcopy__(self, memo: dict[int, Any]) -> Call:
        return self

    @cached_property
    def source_rows(self) -> Tensor:
        """Indices of the source's rows."""
        return self._rows([i for i, role in enumerate(self.roles) if role in SOURCES])

    @cached_property
    def target_rows(self) -> Tensor:
        """Indices of the target's rows."""
        return self._rows([i for i, role in enumerate(self.roles) if role not in SOURCES])

    @cached_property
    def sources(self) -> tuple[tuple[str, int, Tensor], ...]:
        """The source's chunks: role, text tokens and indices of the rows."""
        chunks = zip(self.roles, self.lengths, strict=True)
        return tuple((role, n, self._rows([i])) for i, (role, n) in enumerate(chunks) if role in SOURCES)

    def _rows(self, chunks: list[int]) -> Tensor:
        # Made on the device: a list would be a copy to it in every call.
        spans = [torch.arange(c * self.batch, (c + 1) * self.batch, device=self.device) for c in chunks]
        return torch.cat(spans) if spans else torch.arange(0, device=self.device)

    @property
    def target_roles(self) -> tuple[str, ...]:
        """Roles of the chunks that are not the source's."""
        return tuple(role for role in self.roles if role not in SOURCES)

    @property
    def target_lengths(self) -> tuple[int, ...]:
        """Text tokens of the chunks that are not the source's."""
        return tuple(n for role, n in zip(self.roles, self.lengths, strict=True) if role not in SOURCES)
