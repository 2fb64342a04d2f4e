"""What edits have read of an inversion's source, kept for later edits of the same inversion.

The source is the same in every edit of an image: its latents are stored, its text is its own, and no control acts on
its rows. Features that one edit has read are therefore another's bit for bit, as long as both read them in a call of
the source alone and through the same model, and a step whose features are there costs no evaluation of the source.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Hashable
from dataclasses import dataclass, field

import torch

from ...host.marks import KEY_NEGATIVE, SOURCES
from ...inversion.record import Inversion
from .call import Features
from .moment import savable
from .sameness import Sameness
from .shelves import RAM, UNREADABLE, Captured, Kept, Parcel, Shelf, release, taken

log = logging.getLogger(__name__)

Needs = frozenset[tuple[Hashable, Hashable, str]]
"""What a step reads of the source: site, place and "q", "k" or "v"."""
Rows = tuple[float, tuple[str, ...]]
"""A noise level, and whose rows are in the source's call: in a call of two each row is rounded otherwise than alone."""


@dataclass(frozen=True)
class Keeping:
    """Where features of the source are kept, and how much of them.

    Attributes:
        where: one of `shelves.SHELVES` but "off".
        budget: bytes, of all inversions together.
    """

    where: str
    budget: int


@dataclass(frozen=True, eq=False)
class _Step:
    """What is kept of a noise level."""

    has: Needs
    parcel: Parcel


@dataclass(eq=False)
class SourceRecord:
    """What is kept of one inversion's source, by noise level and by the rows of its call.

    Attributes:
        of: the model that it was read in.
        negative: names the negative prompt, once the source was run with one.
        dropped: why nothing of what was there before can be used; empty if nothing was.
    """

    of: Sameness
    shelf: Shelf
    keeping: Keeping
    negative: str = ""
    dropped: str = ""
    _steps: dict[Rows, _Step] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Bytes that it takes."""
        return sum(step.parcel.bytes for step in self._steps.values())

    def holds(self, rows: Rows, needs: Needs) -> bool:
        """Whether all that a step reads is there."""
        step = self._steps.get(rows)
        return step is not None and needs <= step.has

    def take(self, rows: Rows, device: torch.device, then: float | None) -> Kept | None:
        """The features of a noise level that it holds, on a device; those of the next level are sent ahead.

        None where their file is gone, so that the source has to run.
        """
        following = None if then is None else self._steps.get((then, rows[1]))
        step = self._steps[rows]
        try:
            return savable(lambda: self.shelf.get(step.parcel, device, following and following.parcel))
        except UNREADABLE as error:
            del self._steps[rows]
            log.warning("Attention Edit: what was kept of the source cannot be read, and is made anew (%s).", error)
            return None

    def pins(self, device: torch.device) -> bool:
        """Whether what is kept lies in pinned memory."""
        return self.shelf.where == RAM and device.type != "cpu"

    def keep(self, rows: Rows, needs: Needs, captured: Captured, device: torch.device) -> None:
        """Keep what a step has read, beside what was there; nothing where there is no room."""
        if not self._whole(rows, needs, captured):
            return
        source: Kept = {place: {who: f for who, f in of.items() if who in SOURCES} for place, of in captured.items()}
        before = self._steps.get(rows)
        if before is not None and (there := self.take(rows, device, None)) is not None:
            source, needs = _together(there, source), needs | before.has
        size = sum(t.nbytes for of in source.values() for f in of.values() for t in (f.q, f.k, f.v) if t is not None)
        try:
            if taken(size, self.pins(device)) > min(self._left(before), self.shelf.room(device)):
                return
            self._steps[rows] = _Step(needs, savable(lambda: self.shelf.put(source)))
        except UNREADABLE as error:
            log.warning("Attention Edit: the source's features are not kept (%s).", error)

    def rest(self) -> None:
        """The run is over."""
        self.shelf.rest()

    def clear(self) -> None:
        """Forget all."""
        self._steps.clear()
        self.shelf = Shelf(self.shelf.where)
        release()

    def trim(self) -> None:
        """Forget steps, the last ones first, until the rest is within the budget."""
        while self._steps and self.bytes > self.keeping.budget:
            self._steps.popitem()

    @staticmethod
    def _whole(rows: Rows, needs: Needs, captured: Captured) -> bool:
        """Whether all that a step reads has come by: other packs' caches may have answered for the source's call."""
        owners = [(captured.get((site, place), {}), part) for site, place, part in needs]
        return all(role in of and getattr(of[role], part) is not None for of, part in owners for role in rows[1])

    def read_with(self, negative: str) -> None:
        """Forget what was read with another negative prompt; an empty name is of a run that reads none."""
        if negative and negative != self.negative:
            self._steps = {rows: step for rows, step in self._steps.items() if KEY_NEGATIVE not in rows[1]}
            self.negative = negative

    def _left(self, replaced: _Step | None) -> int:
        """Bytes of the budget that are left; records of other inversions make room, since this one is in use."""
        held = self.bytes - (replaced.parcel.bytes if replaced else 0)
        others = [record for record in _records.values() if record is not self]
        return self.keeping.budget - held - sum(record.bytes for record in others)


_records: weakref.WeakKeyDictionary[Inversion, SourceRecord] = weakref.WeakKeyDictionary()
"""The record of each inversion, which ends with it: when the host's cache lets go of its node's output."""


def record_for(inversion: Inversion, keeping: Keeping, of: Sameness) -> SourceRecord:
    """The record of an inversion's source as a model sees it; an empty one if that has changed."""
    before = _records.get(inversion)
    if before is not None and before.shelf.where == keeping.where and before.of == of:
        before.keeping, before.dropped = keeping, ""
        before.trim()
        return before
    dropped = "" if before is None or not before.bytes else before.of.difference(of) or "it was kept elsewhere"
    found = _records[inversion] = SourceRecord(of, Shelf(keeping.where), keeping, dropped=dropped)
    return found


def make_way(record: SourceRecord, wanted: int) -> None:
    """Drop records of other inversions until so many bytes fit into the budget, the oldest first."""
    for other in list(_records.values()):
        if record.keeping.budget - sum(each.bytes for each in _records.values()) >= wanted:
            return
        if other is not record:
            other.clear()


def held_of(inversion: Inversion) -> int:
    """Bytes that are kept of an inversion's source."""
    record = _records.get(inversion)
    return 0 if record is None else record.bytes


def forget(inversion: Inversion) -> None:
    """Drop what is kept of an inversion's source."""
    if (record := _records.pop(inversion, None)) is not None:
        record.clear()


def free_records(where: str = "") -> int:
    """Drop what is kept of all inversions in a place, or everywhere; returns the bytes that were held."""
    chosen = [record for record in _records.values() if where in ("", record.shelf.where)]
    held = sum(record.bytes for record in chosen)
    for record in chosen:
        record.clear()
    return held


def _together(one: Captured, other: Captured) -> Kept:
    """The features of both; what is in both is the same."""
    found: Kept = {place: dict(of) for place, of in one.items()}
    for place, of in other.items():
        owners = found.setdefault(place, {})
        for who, features in of.items():
            owners[who] = _both(owners[who], features) if who in owners else features
    return found


def _both(one: Features, other: Features) -> Features:
    parts = {name: getattr(one, name) if getattr(one, name) is not None else getattr(other, name) for name in "qkv"}
    return Features(**parts, ahead=other.ahead, words=other.words)
