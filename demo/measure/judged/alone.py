"""DDIM inversion with no method on it."""

from __future__ import annotations

from measure.injected import SHAPES_AND_COLOURS, Judged, method

JUDGED: Judged = [(method("DDIM inversion alone", None, lambda steps: 0), SHAPES_AND_COLOURS)]
