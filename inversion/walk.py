"""Walks along noise levels under the host's guider, which loads, offloads, previews and cancels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..host.conditioning import Conditioning, at_step, with_states
from ..host.guider import HostRun, OwnSampler, cfg_guider, run_sampler
from ..host.models import latent_of, prediction_of
from .record import MATCH, Inversion
from .steps import Predict, scale_of

Walk = Callable[[Predict, Tensor], list[Tensor]]
"""What a run does: from the network and the start latent (in its `Scale`) to the latents that it visits."""


def raw_prediction(denoised: Tensor, z: Tensor, sigma: float, kind: str) -> Tensor:
    """The network's own output (eps, v, velocity) from the host's prediction of the clean latent.

    Args:
        denoised: (B, C, h, w), what the host made of it; z: the latent that it was given, in its `Scale`.
    """
    return scale_of(kind).raw(denoised, z, sigma)


class Walker(OwnSampler):
    """Hands the raw network to a walk and keeps what it visits, float32 on the CPU.

    Args:
        walk: what to do.
        kind: "eps", "v" or "flow".
        texts: whose null text stands in the negative prompt's place, and whose words that were learned for each step
            in the positive one's.
    """

    def __init__(self, walk: Walk, kind: str, texts: Inversion | None = None) -> None:
        self.walk, self.kind, self.texts = walk, kind, texts
        self.visited: list[Tensor] = []

    def run(self, host: HostRun) -> Tensor:
        """Walk from the start."""
        conds, levels = host.guider.conds, host.sigmas.tolist()
        positive, negative = conds.get("positive"), conds.get("negative")

        def predict(z: Tensor, sigma: float) -> Tensor:
            # A null text of one step is the negative prompt itself, as the host has made it ready for the model.
            states = self.texts.null_at(sigma) if self.texts and self.texts.null_steps > 1 else None
            if states is not None:
                beside = negative[0]["model_conds"]["c_crossattn"].cond  # on whose device the host batches the two
                conds["negative"] = with_states(negative, states.to(beside))
            if self.texts is not None:
                conds["positive"] = at_step(positive, self.texts.pair(sigma))
            x = scale_of(self.kind).to_sampler(z, sigma)
            denoised = host.denoised(x, sigma)
            host.show(_step_at(sigma, levels), denoised, x)
            return raw_prediction(denoised, z, sigma, self.kind)

        with torch.no_grad():
            visited = self.walk(predict, host.start)
        self.visited = [z.float().cpu() for z in visited]
        return visited[-1]


def _step_at(sigma: float, levels: list[float]) -> int:
    """The step that an evaluation belongs to: several of one step move the bar once, an inversion's first has none.

    One at a level is of the step from it on the way to the image, and of the step to it on the way to noise.
    """
    if levels[0] > levels[-1]:
        return min(sum(level >= sigma * (1 - MATCH) for level in levels), len(levels) - 1) - 1
    return sum(level < sigma * (1 - MATCH) for level in levels) - 1


def evaluations(calls: int, batch: int, guidance: float) -> int:
    """UNet evaluations of so many calls: twice as many latents where guidance needs the negative prompt."""
    return calls * batch * (1 if guidance == 1.0 else 2)


def run_walk(
    model: Any,
    walk: Walk,
    start: Tensor,
    sigmas: Sequence[float],
    *,
    positive: Conditioning,
    negative: Conditioning | None,
    guidance: float,
    texts: Inversion | None = None,
) -> list[Tensor]:
    """Walk with a host MODEL.

    Args:
        start: (B, C, h, w) as a LATENT socket carries it.
        sigmas: the levels, in the order of the walk.
        texts: see `Walker`.

    Returns:
        the latents visited (B, C, h, w), float32 on the CPU.

    Raises:
        ValueError: guidance without a negative prompt.
    """
    if guidance != 1.0 and negative is None:
        raise ValueError(
            f"Guidance {guidance:g} needs a negative prompt, and none is connected. Connect an empty prompt, or set "
            "guidance to 1."
        )
    walker = Walker(walk, prediction_of(model), texts)
    run_sampler(cfg_guider(model, positive, negative, guidance), walker, start, list(sigmas))
    return walker.visited


def walk_inversion(
    model: Any,
    walk: Walk,
    inversion: Inversion,
    sigmas: Sequence[float],
    negative: Conditioning | None,
    guidance: float,
) -> list[Tensor]:
    """Walk with an inversion's source prompt from its stored latent at sigmas[0].

    The inversion's null text, if it has one, stands in the negative prompt's place, and words that were learned for
    each step in the source prompt. Arguments, returned values and
    errors otherwise as `run_walk` has them.
    """
    first = inversion.latents[0 if sigmas[0] == inversion.sigmas[0] else -1]
    return run_walk(
        model,
        walk,
        latent_of(model, first),
        sigmas,
        positive=inversion.conditioning,
        negative=inversion.null_conditioning or negative,
        guidance=guidance,
        texts=inversion,
    )
