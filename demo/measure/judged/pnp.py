"""Plug-and-Play."""

from __future__ import annotations

from machine.pack import pack_module
from measure.injected import SHAPES_AND_COLOURS, Judged, method

PnP = pack_module("attention.methods.pnp").PnP
JUDGED: Judged = [(method("Plug-and-Play", PnP(), lambda steps: int(0.8 * steps + 1e-9)), SHAPES_AND_COLOURS)]
