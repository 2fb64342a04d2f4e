"""What a pass and its way back through a part of the UNet are worth, in UNet evaluations."""

from __future__ import annotations

from .families import Family

FORWARD = {
    "SD1.x": {1: 0.985, 2: 0.701, 4: 0.494, 8: 0.317},
    "SD2.x": {1: 0.987, 2: 0.665, 4: 0.480, 8: 0.330},
    "SDXL": {2: 0.927, 4: 0.768},
}
"""Share of the UNet's floating-point operations ahead of the last layer of a scale, by family and scale, counted at
512, 768 and 1024 pixels with PyTorch's own attention."""


BACK = 1.17
"""Operations of the way back for each of the way forth, as `demo/benchmark.py mag` counts them: weights get no
gradient, but attention's way back computes its scores again."""


def work(family: Family, scale: int, checkpointing: bool) -> float:
    """UNet evaluations that one pass and its way back to the latent are worth.

    With checkpointing each block is computed again.
    """
    return FORWARD[family.name][scale] * (1 + BACK + checkpointing)
