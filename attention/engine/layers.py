"""Which layers a method acts on: the papers' rules and ranges of layers."""

from __future__ import annotations

import re

from ...host.families import Family, Layer, LayerByFamily

RESOLUTION = "up to 32 x 32 tokens"
COARSE = "up to 16 x 16 tokens"
PAPER = "4 to 14 of 16 (paper)"
ALL = "all"
VITAL = "vital (transformers)"
MIDDLE = "middle (transformers)"
LAYER_RULES = (RESOLUTION, COARSE, PAPER, ALL, VITAL, MIDDLE)
_SIXTEEN = 16


def layers_of(family: Family, rule: str) -> tuple[Layer, ...]:
    """Layers that a rule chooses.

    Args:
        rule: one of LAYER_RULES, or layer numbers in call order from 0 and ranges of them, both ends included, such as
            "3-13" or "0, 4-7". RESOLUTION counts tokens at the family's own size (layers 2 to 12 of SD1.x, 4 to 63 of
            SDXL; all of a transformer's). PAPER means the layers at these places, if the model was cut down from one
            with 16. VITAL are the blocks that a paper lists for a transformer (Stable Flow's for Flux.1), MIDDLE the
            middle two thirds of its blocks.

    Raises:
        ValueError: an unknown rule, a layer that the model does not have, the paper's range on SDXL, or a
            transformer's rule on a UNet or where no blocks are published.
    """
    if rule in (VITAL, MIDDLE):
        return _blocks_of(family, rule)
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
    chosen: set[int] = set()
    for part in rule.split(","):
        found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if first <= last < count:
            chosen |= set(range(first, last + 1))
            continue
        raise ValueError(
            f"{rule!r} chooses no layers of {family}. Give one of {', '.join(map(repr, LAYER_RULES))}, or a range of "
            f"layer numbers from 0 to {count - 1}, such as 3-13."
        )
    return tuple(layer for layer in family.layers if layer.index in chosen)


def layers_from(family: Family, first: int | None, published: LayerByFamily) -> tuple[Layer, ...]:
    """Layers from a number on; without one, those of a paper: from its own number on, or a transformer's vital blocks.

    Raises:
        ValueError: none is published for the family.
    """
    if first is None and family.transformer is not None and family.transformer.vital:
        return _blocks_of(family, VITAL)
    return family.layers[published[family] if first is None else first :]


def _blocks_of(family: Family, rule: str) -> tuple[Layer, ...]:
    """A transformer's blocks by a rule's name."""
    if family.transformer is None:
        raise ValueError(f"Choose another rule: {rule!r} is for blocks of transformers, and {family} is a UNet.")
    count = len(family.layers)
    if rule == MIDDLE:
        return family.layers[count // 6 : count - count // 6]
    if not family.transformer.vital:
        raise ValueError(
            f"Choose {MIDDLE!r}, {ALL!r} or a range from 0 to {count - 1}: no list of vital blocks is published for "
            f"{family}."
        )
    places = {family.at_place_of(la.index) for la in family.whole.layers if la.block in family.transformer.vital}
    return tuple(family.layers[index] for index in sorted(places))
