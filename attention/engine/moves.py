"""Controls that change the sampler's own latent before a step, and the check that the sampler goes on from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .control import Slopes
from .run import Run


def move(run: Run, x: Tensor, network: Slopes) -> None:
    """Change the sampler's latent (B, C, h, w) in place: it goes on from the tensor that it has handed out.

    Hence this is exact for every sampler that shows the model its own latent and reads it again afterwards; the
    callback checks that it does.
    """
    moved = x
    for control in run.acting.latents:
        moved = control.before(run, run.states[control], moved, network)
    x.copy_(moved)
    run.moved = x


def checked(run: Run, callback: Any) -> Callable[[int, Tensor, Tensor, int], None]:
    """The host's callback, which sees the sampler's own latent: it must be the one that controls have moved.

    Raises:
        ValueError: the sampler goes on from another tensor.
    """

    def check(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
        moved, run.moved = run.moved, None
        if moved is not None and x.data_ptr() != moved.data_ptr():
            raise ValueError(
                "An edit changes the sampler's own latent, but this sampler (or a noise mask on its latent) shows the "
                "model a copy of it. Use euler, ddim, heun, dpm_2, lms or dpmpp_2m, without Set Latent Noise Mask."
            )
        if callback is not None:
            callback(step, denoised, x, total)

    return check
