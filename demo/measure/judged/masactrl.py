"""MasaCtrl."""

from __future__ import annotations

from machine.pack import pack_module
from measure.injected import SHAPES, Judged, method

MasaCtrl = pack_module("attention.methods.masactrl").MasaCtrl
JUDGED: Judged = [(method("MasaCtrl", MasaCtrl(), lambda steps: steps - 1 - int(0.08 * steps + 1e-9)), SHAPES)]
