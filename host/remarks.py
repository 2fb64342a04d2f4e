"""What a run has to say to the person: shown on the node that ran, kept there, and written to the log.

A remark is made by `remark` wherever it is known. The host's progress text shows it on any node, host's nodes too;
js/attention_edit.js colours the node, and keeps both as long as the host answers from its cache.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from enum import Enum

from comfy_execution.utils import get_executing_context

from . import progress

log = logging.getLogger(__name__)

EVENT = "attention_edit.remarks"
"""The message to the front end: node, prompt_id, and remarks as lists of kind and text."""


class Kind(Enum):
    """How a remark stands to what was asked for."""

    USED = "used"
    IGNORED = "not honoured"
    DOUBTFUL = "likely to disappoint"


@dataclass(frozen=True)
class Remark:
    """A remark. The first sentence of one that is not USED is the cure."""

    kind: Kind
    text: str


@dataclass(eq=False)
class Remarks:
    """The remarks of one node's execution, each once, in the order in which they were made."""

    made: list[Remark] = field(default_factory=list)

    def add(self, kind: Kind, text: str) -> None:
        """Make a remark, in the log too."""
        remark = Remark(kind, text)
        if remark not in self.made:
            self.made.append(remark)
            log.log(logging.INFO if kind is Kind.USED else logging.WARNING, "Attention Edit: %s", text)

    def show(self) -> None:
        """Show all of them on the running node, in place of what it said while it ran; without a server nothing."""
        if self.made:
            lines = [r.text if r.kind is Kind.USED else f"{r.kind.value}: {r.text}" for r in self.made]
            progress.show("\n".join(lines))
            progress.send(EVENT, {"remarks": [[r.kind.value, r.text] for r in self.made]})


@dataclass(eq=False)
class _Latest:
    """The remarks of the node that runs, by the workflow's run and the node."""

    key: tuple[str, str] | None = None
    remarks: Remarks = field(default_factory=Remarks)


_latest = _Latest()


def remarks_here() -> Remarks:
    """The remarks of the running node; outside of a workflow new ones."""
    context = get_executing_context()
    key = None if context is None else (context.prompt_id, context.node_id)
    if key is None or key != _latest.key:
        _latest.key, _latest.remarks = key, Remarks()
    return _latest.remarks


def remark(kind: Kind, text: str) -> None:
    """Make a remark on the running node and show it."""
    remarks = remarks_here()
    remarks.add(kind, text)
    remarks.show()
