"""Which layers a method acts on: the papers' rules and ranges of layers."""

from __future__ import annotations

import re

from ...host.families import Family, Layer

RESOLUTION = "up to 32 x 32 tokens"
COARSE = "up to 16 x 16 tokens"
PAPER = "4 to 14 of 16 (paper)"
ALL = "all"
LAYER_RULES = (RESOLUTION, COARSE, PAPER, ALL)
_SIXTEEN = 16


def layers_of(family: Family, rule: str) -> tuple[Layer, ...]:
    """Layers that a rule chooses.

    Args:
        rule: one of LAYER_RULES, or a range of layer numbers in call order from 0, both ends included, such as "3-13".
            RESOLUTION counts tokens at the family's own size (layers 2 to 12 of SD1.x, 4 to 63 of SDXL). PAPER
            means the layers at these places, if the model was cut down from one with 16.

    Raises:
        ValueError: an unknown rule, a range that leaves the model, or the paper's range on SDXL.
    """
    if rule == RESOLUTION:
        return family.up_to(32)
    if rule == COARSE:
        return family.up_to(16)
    if rule == ALL:
        return family.layers
    count = len(family.layers)
    if rule == PAPER:
        if len(family.whole.layers) != _SIXTEEN:
            raise ValueError(
                f"The paper's layers 4 to 14 are those of a model with 16; {family} has {count}. Choose "
                f"{RESOLUTION!r} or a range such as 4-63."
            )
        # The paper counts from 1.
        return family.layers[family.at_place_of(3) : family.at_place_of(13) + 1]
    found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", rule)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if not first <= last < count:
        raise ValueError(
            f"{rule!r} chooses no layers of {family}. Give one of {', '.join(map(repr, LAYER_RULES))}, or a range of "
            f"layer numbers from 0 to {count - 1}, such as 3-13."
        )
    return family.layers[first : last + 1]
