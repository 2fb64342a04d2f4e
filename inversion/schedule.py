"""DDIM timesteps and their noise levels, as the papers' code spaces them, and schedules that are connected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from ..host.models import flow_levels, is_flow

OFFSETS = {"leading, offset 0 (editing papers)": 0, "leading, offset 1 (diffusers, ddim_uniform)": 1}
"""The two conventions. Offset 0 gives 980, 960 ... 0 for 50 steps: null-text inversion, MasaCtrl, FPE, MAG-Edit
and CPAM. Offset 1 gives 981 ... 1: Dynamic Prompt Learning, Plug-and-Play, and the host's ddim_uniform."""
MAX_STEPS = 1000


def timesteps(steps: int, offset: int) -> list[int]:
    """Timesteps from clean to noisy, on "leading" spacing.

    Args:
        steps: number of steps, 1 to 1000.
        offset: 0 or 1, see OFFSETS.

    Raises:
        ValueError: steps out of range.
    """
    if not 1 <= steps <= MAX_STEPS:
        raise ValueError(f"An inversion needs 1 to {MAX_STEPS} steps, not {steps}.")
    stride = MAX_STEPS // steps
    return [min(i * stride + offset, MAX_STEPS - 1) for i in range(steps)]


def levels(model_sampling: Any, steps: int, offset: int) -> list[float]:
    """Noise levels (sigmas) of an inversion's latents, clean to noisy.

    The image itself lies at timestep 0 (DDIM with "set alpha to one" off: the last alpha is alpha_0). With
    offset 0 the first timestep is 0 too: that step is an identity, and is left out.

    A rectified flow's schedule is the model's own, from the image at 0 to noise: `flow_levels`.

    Raises:
        ValueError: the model's noise schedule has no 1000 discrete levels, or no step is left.
    """
    if is_flow(model_sampling):
        return flow_levels(model_sampling, steps)
    table: Tensor | None = getattr(model_sampling, "sigmas", None)
    if table is None or table.ndim != 1 or len(table) != MAX_STEPS:
        raise ValueError(
            f"DDIM inversion needs a model with {MAX_STEPS} discrete noise levels; this one has "
            f"{type(model_sampling).__mro__[1].__name__}. Connect an SD1.x, SD2.x or SDXL checkpoint."
        )
    times = sorted({0, *timesteps(steps, offset)})
    if len(times) < 2:
        raise ValueError(
            f"With {steps} step this schedule goes from timestep 0 to timestep 0. Set steps to 2 or more; the papers "
            "use 50."
        )
    return [float(table[t]) for t in times]


NEAR = 1e-4
"""Relative difference by which a connected schedule may begin above the model's noisiest level: a rounding."""


def connected_levels(model_sampling: Any, sigmas: Sequence[float]) -> list[float]:
    """Noise levels of a schedule as scheduler nodes give it (SIGMAS), clean to noisy; the image lies at 0.

    Args:
        sigmas: falling from noise to 0.

    Raises:
        ValueError: no falling schedule that ends at 0, or it does not start at a noise level of the model.
    """
    steps = len(sigmas) - 1
    if not 1 <= steps <= MAX_STEPS:
        raise ValueError(
            f"Connect sigmas of 1 to {MAX_STEPS} steps, such as BasicScheduler's with denoise 1: these have "
            f"{max(steps, 0)}."
        )
    for number, (high, low) in enumerate(pairwise(sigmas), 1):
        if not math.isfinite(high) or not low < high:
            raise ValueError(
                "Connect sigmas that fall from noise to image, as a scheduler node gives them (Flip Sigmas turns them "
                f"round): here level {number} is {low:.4f}, behind {high:.4f}."
            )
    if sigmas[-1] != 0:
        raise ValueError(
            f"Connect sigmas that end at 0, where the photograph lies: these end at {sigmas[-1]:.4f} (of Split Sigmas "
            "take the last part)."
        )
    least, most = float(model_sampling.sigma_min), float(model_sampling.sigma_max)
    if not least * (1 - NEAR) <= sigmas[0] <= most * (1 + NEAR):
        raise ValueError(
            f"Give the scheduler node the model that is inverted: its noise levels go from {least:.4f} to {most:.4f}, "
            f"and the connected sigmas begin at {sigmas[0]:.4f}."
        )
    return [float(sigma) for sigma in reversed(sigmas)]
