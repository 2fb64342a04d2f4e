"""Whose rows a UNet call holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...host.marks import SOURCES, is_row
from .branches import OWN
from .run import Run

UNCONDITIONAL = ("negative", "empty_negative_prompt")
"""The host's guiders' names of conditionings that stand for the absence of the prompt."""


class Row(NamedTuple):
    """The identity that a conditioning goes by where a part of a branch uses it, in the place of the host's own.

    Attributes:
        part: whose. half: its place among the guider's conditionings. uuid: the host's identity.
    """

    part: str
    half: int
    uuid: Any


def is_conditional(role: str) -> bool:
    """Whether a role is a prompt, and not the absence of one."""
    return role not in UNCONDITIONAL and not is_row(role)


@dataclass(frozen=True, eq=False)
class Group:
    """The rows of a call that one part of a branch has: what acts on that part is asked with.

    Attributes:
        part: its name, OWN for the sampler's own latent and prompts.
        rows: indices of its rows in the call.
        roles, uuids, lengths: of its chunks, as `Call` has them.
    """

    part: str
    rows: Tensor
    roles: tuple[str, ...]
    uuids: tuple[Any, ...]
    lengths: tuple[int, ...]

    @property
    def conditional(self) -> tuple[bool, ...]:
        """Which chunks are conditional."""
        return tuple(map(is_conditional, self.roles))


@dataclass(frozen=True, eq=False)
class Call:
    """One UNet call: whose rows it holds.

    Attributes:
        roles: per chunk of `batch` rows, the key of its conditioning: "positive", "negative", ... or one of
            SOURCES.
        batch: rows per chunk.
        lengths: per chunk, the text tokens of its conditioning.
        rows: per chunk, the part of a branch that it belongs to, and its identity.
    """

    run: Run
    roles: tuple[str, ...]
    batch: int
    device: torch.device
    lengths: tuple[int, ...]
    rows: tuple[Row, ...]

    def __deepcopy__(self, memo: dict[int, Any]) -> Call:
        return self

    @cached_property
    def source_rows(self) -> Tensor:
        """Indices of the source's rows."""
        return self._rows([i for i, role in enumerate(self.roles) if role in SOURCES])

    @cached_property
    def sources(self) -> tuple[tuple[str, int, Tensor], ...]:
        """The source's chunks: role, text tokens and indices of the rows."""
        chunks = zip(self.roles, self.lengths, strict=True)
        return tuple((role, n, self._rows([i])) for i, (role, n) in enumerate(chunks) if role in SOURCES)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The rows that are not the source's, part by part; without branches there is one part."""
        chunks: dict[str, list[int]] = {}
        for i, role in enumerate(self.roles):
            if role not in SOURCES:
                chunks.setdefault(self.rows[i].part, []).append(i)
        return tuple(
            Group(
                part,
                self._rows(places),
                _picked(self.roles, places),
                tuple(self.rows[i].uuid for i in places),
                _picked(self.lengths, places),
            )
            for part, places in chunks.items()
        )

    @cached_property
    def own(self) -> Group | None:
        """The rows of the sampler's own latent and prompts; None if the call holds none."""
        return next((group for group in self.groups if group.part == OWN), None)

    def check_rows(self, count: int, where: str) -> None:
        """Refuse attention of other rows than the call's: nobody has said whose the further ones are.

        Raises:
            ValueError: `count` is not the call's number of rows.
        """
        expected = self.batch * len(self.roles)
        if count != expected:
            raise ValueError(
                "Remove the node that gives attention further rows (Attention Couple and the like) from the edited "
                f"model: {where} has {count} rows where the sampler's prompts make {expected}, and the edit cannot "
                "tell whose they are."
            )

    def _rows(self, chunks: list[int]) -> Tensor:
        # Made on the device: a list would be a copy to it in every call.
        spans = [torch.arange(c * self.batch, (c + 1) * self.batch, device=self.device) for c in chunks]
        return torch.cat(spans) if spans else torch.arange(0, device=self.device)


def _picked(values: Sequence[Any], places: list[int]) -> tuple[Any, ...]:
    return tuple(values[i] for i in places)
