"""Where an edit starts on the inversion's schedule."""

from __future__ import annotations

from .record import Inversion


def schedule_from(inversion: Inversion, denoise: float) -> tuple[float, ...]:
    """The inversion's sigmas, noisy to clean, from a share of the way to noise.

    Args:
        denoise: 1 starts at the inverted noise; 0.6 at the trajectory's latent after 40 % of the steps.

    Raises:
        ValueError: denoise is not in (0, 1], or too small to leave a step.
    """
    if not 0 < denoise <= 1:
        raise ValueError(f"Edit Setup's denoise must be above 0 and at most 1, not {denoise:g}.")
    schedule = inversion.schedule
    left = round((len(schedule) - 1) * denoise)
    if left == 0:
        raise ValueError(
            f"With denoise {denoise:g} none of the inversion's {len(schedule) - 1} steps is left; raise it."
        )
    return tuple(schedule[-left - 1 :])
