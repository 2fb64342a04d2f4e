"""How Dynamic Prompt Learning is run: as its released code does, or as its paper says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ....host.families import Family
from ....host.work import BACK, work
from ....inversion.null_text import PAPER_STEPS, NullTextInversion
from ...maps.probabilities import OBJECT_SCALE
from .losses import Losses


@dataclass(frozen=True)
class Settings:
    """Settings of the inversion; the defaults are the released code's.

    Attributes:
        iterations: passes for the losses per step at most; each but one that finds all losses below their thresholds
            is followed by an update.
        learning_rate: of the updates.
        weight_decay: AdamW's; None for plain gradient descent.
        losses: and their thresholds.
        null: how the null text of each step is optimised, and whether both compute blocks again on the way back.
    """

    iterations: int = 21
    learning_rate: float = 1e-3
    weight_decay: float | None = 1e-2
    losses: Losses = field(default_factory=Losses)
    null: NullTextInversion = field(default_factory=lambda: NullTextInversion(inner=51, early_stop=0.0, anew=True))

    @property
    def checkpointing(self) -> bool:
        """Whether blocks are computed again on the way back instead of kept in memory."""
        return self.null.checkpointing

    def optimiser(self, leaves: Iterable[Tensor]) -> torch.optim.Optimizer:
        """A fresh optimiser, as every step has."""
        if self.weight_decay is None:
            return torch.optim.SGD(leaves, lr=self.learning_rate)
        return torch.optim.AdamW(leaves, lr=self.learning_rate, weight_decay=self.weight_decay)

    def planned(self, steps: int, batch: int) -> tuple[int, int]:
        """Most UNet calls that it can take: (forward, backward). Passes for the losses end at the last map."""
        forward, backward = self.null.planned(steps, batch)
        passes = self.iterations * steps * batch
        return forward + passes, backward + passes

    def worth(self, family: Family, steps: int, batch: int) -> float:
        """The same in UNet evaluations: what both ways cost, and that passes for the losses are parts."""
        forward, backward = self.null.planned(steps, batch)
        again = backward if self.checkpointing else 0
        passes = self.iterations * steps * batch * work(family, OBJECT_SCALE, self.checkpointing)
        return passes + forward + BACK * backward + again


def clock(number: int, steps: int) -> float:
    """The step of 50 that a step is, by which thresholds are counted."""
    return number * PAPER_STEPS / steps


RELEASED = Settings()
OF_PAPER = Settings(
    iterations=50,
    learning_rate=1.0,
    weight_decay=None,
    losses=Losses(total=True),
    null=NullTextInversion(),
)
"""Algorithm 1: gradient descent without an optimiser until all losses are below their thresholds (50 times at most),
sums over nouns and pairs, and the null text of Mokady et al., which goes on from the step before."""
DPL_PRESETS = {"released code": RELEASED, "paper": OF_PAPER}
