"""Walks along noise levels under the host's guider, which loads, offloads, previews and cancels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from ..host.conditioning import with_states
from .steps import Predict

Walk = Callable[[Predict, Tensor], list[Tensor]]
"""What a run does: from the network and the start latent (DDPM scale) to the latents that it visits."""


def raw_prediction(denoised: Tensor, z: Tensor, sigma: float, kind: str) -> Tensor:
    """The network's own output, eps or v, from the host's prediction of the clean latent.

    Args:
        denoised: (B, C, h, w), what the host made of it; z: the latent that it was given, in DDPM scale.
    """
    scale = (1 + sigma * sigma) ** 0.5
    if kind == "v":
        return (z / scale - denoised) * scale / sigma
    return (z * scale - denoised) / sigma


class Walker(comfy.samplers.Sampler):
    """A host sampler that hands the raw network to a walk and keeps what it visits.

    Args:
        walk: what to do.
        kind: "eps" or "v".
        null: the negative prompt's states (1 or B, L, C) at a sigma, where they change from step to step.
    """

    def __init__(self, walk: Walk, kind: str, null: Callable[[float], Tensor | None] | None = None) -> None:
        self.walk, self.kind, self.null = walk, kind, null
        self.visited: list[Tensor] = []

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callable[..., None] | None,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        """Run the walk from the latent image; the host's Sampler interface."""
        total = len(sigmas) - 1
        levels = [float(sigma) for sigma in sigmas]
        negative = model_wrap.conds.get("negative")

        def predict(z: Tensor, sigma: float) -> Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            states = self.null(sigma) if self.null else None
            if states is not None:
                beside = negative[0]["model_conds"]["c_crossattn"].cond  # on whose device the host batches the two
                model_wrap.conds["negative"] = with_states(negative, states.to(beside))
            x = z * (1 + sigma * sigma) ** 0.5
            denoised = model_wrap(x, x.new_full((len(x),), sigma), extra_args["model_options"], extra_args["seed"])
            if callback is not None:
                # Several evaluations of one step move the bar once; an inversion's first level has none.
                nearest = min(range(len(levels)), key=lambda i: abs(levels[i] - sigma))
                callback(min(nearest, total - 1) if levels[0] > levels[-1] else nearest - 1, denoised, x, total)
            return raw_prediction(denoised, z, sigma, self.kind)

        assert latent_image is not None
        with torch.no_grad():
            self.visited = self.walk(predict, latent_image)
        return self.visited[-1]
