"""What a pass and its way back through a part of the UNet are worth, in UNet evaluations."""

from __future__ import annotations

from .families import ByFamily, Family

FORWARD = ByFamily(
    "the share of the UNet ahead of a scale's attention maps",
    {
        "SD1.x": {1: 0.985, 2: 0.701, 4: 0.494, 8: 0.317},
        "SD2.x": {1: 0.987, 2: 0.665, 4: 0.480, 8: 0.330},
        "SDXL": {2: 0.927, 4: 0.768},
    },
)
"""Share of the floating-point operations of the family's own UNet ahead of the last layer of a scale, by scale,
counted at 512, 768 and 1024 pixels with PyTorch's own attention."""


BACK = 1.17
"""Operations of the way back for each of the way forth, as `demo/benchmark.py mag` counts them: weights get no
gradient, but attention's way back computes its scores again."""


def forward_share(family: Family, scale: int) -> float:
    """Share of a UNet's operations ahead of its last layer of a scale, in 0..1.

    FORWARD's, or for a UNet that was cut down from the family's own an estimate: its blocks cost what the own ones
    of the same stretch of the UNet cost, shared out evenly: within 0.07 of the counted shares of SSD-1B, Segmind Vega,
    KOALA and BK-SDM.

    Raises:
        ValueError: the UNet has no layer of that scale.
    """
    there = {layer.scale for layer in family.layers}
    if scale not in there:
        raise ValueError(
            f"{family} has no attention maps of 1/{scale} of the latent's side; it has "
            f"{', '.join(f'1/{other}' for other in sorted(there))}. Choose maps of one of these sizes."
        )
    if family.is_whole:
        return FORWARD[family][scale]
    costs, rest = _costs(family)
    last = max(layer.index for layer in family.layers if layer.scale == scale)
    return sum(costs[: last + 1]) / (sum(costs) + rest)


def _costs(family: Family) -> tuple[list[float], float]:
    """What each layer's stretch of a cut-down UNet costs, in evaluations of the own UNet, and what is behind all."""
    whole, shares = family.whole.layers, FORWARD[family]
    by_stage: dict[tuple[int, int], float] = {}
    before = 0
    ahead = 0.0
    for last, share in sorted((max(la.index for la in whole if la.scale == scale), s) for scale, s in shares.items()):
        stretch = whole[before : last + 1]
        by_stage |= {layer.stage: (share - ahead) / len(stretch) for layer in stretch}
        before, ahead = last + 1, share
    return [by_stage.get(layer.stage, ahead / len(whole)) for layer in family.layers], 1 - ahead


def work(family: Family, scale: int, checkpointing: bool) -> float:
    """UNet evaluations that one pass and its way back to the latent are worth.

    With checkpointing each block is computed again.

    Raises:
        ValueError: the UNet has no layer of that scale.
    """
    return forward_share(family, scale) * (1 + BACK + checkpointing)
