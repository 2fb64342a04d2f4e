"""Negative-prompt inversion (Miyake et al. 2023): the source prompt itself stands in the negative prompt's place.

For the source guidance then has no effect, so that guided sampling is as near to the image as unguided sampling,
without any optimisation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..host.conditioning import Conditioning, source_conditioning
from ..host.cost import Cost
from .improvement import Found, Improvement
from .learned import without_learned
from .record import Inversion


def slerp(share: float, start: Tensor, end: Tensor) -> Tensor:
    """Spherical interpolation of texts (B, L, C), each taken as one vector: start at share 0, end at 1."""
    end = end.to(start.device)  # an inversion read from a file has its text on the CPU
    a, b = start.flatten(1), end.flatten(1)
    cosine = (a / a.norm(dim=1, keepdim=True) * (b / b.norm(dim=1, keepdim=True))).sum(1, keepdim=True)
    angle = torch.acos(cosine.clamp(-1, 1))
    mixed = (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)
    # Parallel: the formula's limit. Opposite, or one of them zero (ConditioningZeroOut): there is no one arc.
    return torch.where(torch.sin(angle) > 1e-4, mixed, torch.lerp(a, b, share)).view_as(start)


@dataclass(frozen=True)
class NegativePromptInversion(Improvement):
    """Gives an inversion its source prompt as null text, at no cost and for any guidance; it needs no model.

    Attributes:
        interpolation: 0 takes the source prompt, 1 the negative prompt, between them a slerp of the two.

    Raises:
        ValueError: when called, an interpolation without a negative prompt, or prompts of different lengths.
    """

    name: ClassVar[str] = "Negative-prompt inversion"
    on_flows: ClassVar[bool] = True
    interpolation: float = 0.0

    def improve(self, model: Any, inversion: Inversion, negative: Conditioning | None, guidance: float) -> Found:
        """See `Improvement`."""
        states, options = source_conditioning(inversion.conditioning)[0]
        if self.interpolation:
            if negative is None:
                raise ValueError("An interpolation above 0 goes towards the negative prompt; connect an empty prompt.")
            other, others = source_conditioning(negative, "negative prompt of negative-prompt inversion")[0]
            if other.shape[1:] != states.shape[1:]:
                raise ValueError(
                    f"The source prompt has {states.shape[1]} text tokens, the negative prompt {other.shape[1]}; set "
                    "interpolation to 0, or shorten the longer one."
                )
            states = self._between(states, other)
            pooled = options.get("pooled_output"), others.get("pooled_output")
            if pooled[0] is not None and pooled[1] is not None:
                options = {**options, "pooled_output": self._between(*pooled)}
        found = replace(
            inversion,
            method=f"{inversion.method} + negative prompt",
            null_states=states.detach().float().cpu()[None],
            null_options=without_learned(options),
            null_guidance=None,
        )
        return Found(found, Cost(found.latents.device))

    def _between(self, source: Tensor, negative: Tensor) -> Tensor:
        # On the CPU, where null texts are kept: one of the two may come from a file, the other from a text encoder.
        return slerp(self.interpolation, *torch.broadcast_tensors(source.float().cpu(), negative.float().cpu()))
