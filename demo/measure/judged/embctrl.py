"""EmbCtrl: the source prompt's states with those of the changed words, and nothing of the image."""

from __future__ import annotations

from typing import Any

from machine.pack import pack_module
from measure.injected import Captions, Judged, captioned, rows
from measure.methods import Method

embctrl = pack_module("attention.methods.embctrl").embctrl


def _text(captions: Captions, source: Any, target: Any) -> Any:
    return embctrl(captions.source, source, captions.target, target)


JUDGED: Judged = [
    (
        Method(
            "EmbCtrl",
            lambda setup, task: captioned(setup, task, lambda _: [], text=_text),
            lambda steps: rows(steps, 0),
        ),
        ("recolour", "background"),
    )
]
