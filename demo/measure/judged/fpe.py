"""Free-Prompt-Editing."""

from __future__ import annotations

from machine.pack import pack_module
from measure.injected import SHAPES_AND_COLOURS, Judged, method

FPE, PAPER = pack_module("attention.methods.fpe").FPE, pack_module("attention.engine.layers").PAPER
JUDGED: Judged = [
    (method("FPE", FPE(), lambda steps: int(0.8 * steps + 1e-9)), SHAPES_AND_COLOURS),
    (method("FPE, layers 4 to 14", FPE(layers=PAPER), lambda steps: int(0.8 * steps + 1e-9)), SHAPES_AND_COLOURS),
]
