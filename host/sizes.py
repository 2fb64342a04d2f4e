"""Which size of picture a host MODEL draws best."""

from __future__ import annotations

from typing import Any

from .families import SD2, family_of
from .models import prediction_of

_SD2_V_SIDE = 768
"""Pixels: SD 2.0 and 2.1 with v prediction were trained at 768, their base models with eps at the family's 512."""


def picture_size(model: Any) -> tuple[int, int]:
    """Side and multiple, in pixels, of the pictures of a host MODEL.

    The side is that of the square which the model was trained on; a picture of another shape has its area. Both sides
    of a picture are multiples of the second number, so that every layer halves them evenly. The class of a
    model's configuration may say its own side as `picture_side`, as the demo model's does.

    Raises:
        ValueError: the model's architecture is not known, see `family_of`.
    """
    family = family_of(model)
    cell = family.cell
    side = family.side * cell
    if family.name == SD2.name and prediction_of(model) == "v":
        side = _SD2_V_SIDE
    multiple = cell * max(layer.scale for layer in family.whole.layers)
    return getattr(type(model.model.model_config), "picture_side", side), multiple
