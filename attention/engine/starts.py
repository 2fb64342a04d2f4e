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
