"""One step of Dynamic Prompt Learning: the nouns' embeddings go down the losses until these are low enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ....host.text_encoder import LearnableText
from ...engine.reading import Maps
from .losses import attention
from .nouns import Nouns
from .settings import Settings

LearnSlope = Callable[[Tensor, Callable[[Maps], Tensor | None]], Tensor | None]
"""(text states (1, L, C), a loss on the maps that they give) to its gradient by the states; None if the loss is."""


@dataclass(frozen=True)
class Learned:
    """What one step learned.

    Attributes:
        rows: by text encoder, the nouns' embeddings (R, C). states: (1, L, C), the text with them.
        losses: per pass, each loss by its name, before the update that followed.
        bounds: their thresholds.
        content: whether the last pass found all of them below.
    """

    rows: dict[str, Tensor]
    states: Tensor
    losses: tuple[dict[str, float], ...]
    bounds: dict[str, float]
    content: bool


@dataclass(frozen=True, eq=False)
class Task:
    """What is learned.

    Attributes:
        text: the prompt. nouns: of it. mask: (N,) 1 on the background, None if there is none.
        shape: (h, w) of the maps, h w = N.
    """

    text: LearnableText
    nouns: Nouns
    mask: Tensor | None
    shape: tuple[int, int]

    @property
    def asks(self) -> bool:
        """Whether there is any loss: one noun has none but the background's."""
        return self.mask is not None or len(self.nouns.names) > 1


def learn_step(
    task: Task, slope: LearnSlope, rows: dict[str, Tensor], i: float, settings: Settings, told: Callable[[str], None]
) -> Learned:
    """Update the embeddings (R, C) at step i of 50, counted from the noisy end; see `Settings` (Algorithm 1)."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in rows.items()}
    optimiser = settings.optimiser(leaves.values())
    history: list[dict[str, float]] = []
    content = not task.asks

    def wanted(maps: Maps) -> Tensor | None:
        nonlocal content
        losses = settings.losses(attention(maps), task.nouns.places, task.mask, task.shape)
        # One read for all of them: each waits for the device.
        values = torch.stack(list(losses.values())).tolist()
        history.append(dict(zip(losses, values, strict=True)))
        content = settings.losses.content(history[-1], i)
        return None if content else settings.losses.weighed(losses)

    for _ in range(0 if content else settings.iterations):
        vectors = task.nouns.spread(leaves)
        along = slope(_encoded(task.text, vectors), wanted)
        told(", ".join(f"{name} {value:.3f}" for name, value in history[-1].items()))
        if along is None:
            break
        slopes = task.nouns.gathered(task.text.slope(vectors, along))
        for name, leaf in leaves.items():
            leaf.grad = slopes[name]
        optimiser.step()
    found = {name: leaf.detach() for name, leaf in leaves.items()}
    bounds = {name: settings.losses.term(name).bound(i) for name in (history[-1] if history else ())}
    return Learned(found, _encoded(task.text, task.nouns.spread(found)), tuple(history), bounds, content)


def _encoded(text: LearnableText, vectors: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return text.encode(vectors)
