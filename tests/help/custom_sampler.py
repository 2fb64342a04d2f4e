"""A run of a tiny SD1.x by the host's own sampler nodes for custom sampling."""

from __future__ import annotations

from typing import Any

import tiny
from comfy_extras.nodes_custom_sampler import CFGGuider, KSamplerSelect, SamplerCustomAdvanced
from torch import Tensor


def custom(model: Any, noise: Any, sigmas: Tensor, latent: Any, sampler: str = "euler", cfg: float = 4.0) -> Any:
    """A LATENT from SamplerCustomAdvanced, with the prompts of seeds 2 and 3."""
    guider = CFGGuider.execute(model, tiny.prompt(2), tiny.prompt(3), cfg).args[0]
    return SamplerCustomAdvanced.execute(noise, guider, KSamplerSelect.execute(sampler).args[0], sigmas, latent).args[0]
