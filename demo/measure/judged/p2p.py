"""Prompt-to-Prompt, and with its local blend."""

from __future__ import annotations

from typing import Any

from machine.pack import pack_module
from measure.injected import SHAPES_AND_COLOURS, Captions, Judged, captioned, rows
from measure.methods import Method

P2P = pack_module("attention.methods.p2p").P2P
LocalBlend = pack_module("attention.methods.local_blend").LocalBlend


def _p2p(captions: Captions) -> list[Any]:
    return [P2P(captions.source, captions.target)]


def _blended(captions: Captions) -> list[Any]:
    before, after = captions.changed()
    found = _p2p(captions)
    if before and after:
        found.append(LocalBlend(captions.source, captions.target, before, after))
    return found


JUDGED: Judged = [
    (
        Method(
            "Prompt-to-Prompt",
            lambda setup, task: captioned(setup, task, _p2p),
            lambda steps: rows(steps, int(0.8 * (steps + 1) + 1e-9)),
        ),
        SHAPES_AND_COLOURS,
    ),
    (
        Method(
            "Prompt-to-Prompt, local blend",
            lambda setup, task: captioned(setup, task, _blended),
            lambda steps: rows(steps, steps),
        ),
        SHAPES_AND_COLOURS,
    ),
]
