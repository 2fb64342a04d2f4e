"""What the sampler is given where a run has several images, and what it leaves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .run import Run


def side_by_side(run: Run, latent_format: Any, latent: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The latents that the sampler is given, as a LATENT carries them, and its noise, (R, C, h, w) each.

    Args:
        latent, noise: of the run's own images (B, C, h, w). R is B times the number of branches.
    """
    if not run.branches:
        return latent, noise
    latents = torch.cat([latent_format.process_out(branch.start).to(latent) for branch in run.branches])
    return latents, torch.zeros_like(latents)


def ended(run: Run, latent_format: Any, out: Tensor) -> Tensor:
    """What a run ended with, (R, C, h, w) as the sampler left it, off the scale of the schedule's last level.

    The inversion's schedule ends at sigma_0, where alpha is alpha_0 and not 1 ("set alpha to one" off); samplers
    leave x there, the image latent is z = x / sqrt(1 + sigma_0^2). A run that ends before that leaves x itself, from
    which another one goes on.
    """
    last, z = run.sigmas[-1], latent_format.process_in(out)
    return z / (1 + last * last) ** 0.5 if run.whole and last > 0 else z
