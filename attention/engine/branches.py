"""Further images that are sampled beside the run's own: one description, from which all else follows.

A method that needs an image of its own beside the target (MaSaFusion's intermediate image) says so by `Branch`es. All
their latents are rows of one batch that the sampler is given, so that any sampler steps each of them by its own rule,
with its own history (dpmpp_2m, lms) and its own noise (the ancestral ones), and no such rule is written here again. A
sampler that chooses its steps by the whole batch would mix them, and is refused by name. The network is asked branch
by branch, each with its own latent, prompts and ControlNets, or once for all of them (one_call), with the same result.

What a branch predicts may have several parts: other prompts in other regions of the picture. Their predictions are
put together for each half of guidance; guidance is linear at each pixel, so that this is the same as after it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...host.conditioning import Conditioning
from .control import Control
from .moment import Moment

OWN = ""
"""The name of the part that has the sampler's own latent and the sampler's own prompts."""


@dataclass(frozen=True, eq=False)
class BranchPart:
    """One prediction of a branch, and where it counts.

    Attributes:
        name: that acts know its rows by (`Act.on`, `Act.of`). Acts that name none are done on those of OWN.
        cells: (1 or B, 1, h, w) on the latent's cells, 0 to 1; the parts of a branch add up to 1. None: everywhere.
        prompt: CONDITIONING of one plain text in the place of the prompt; None: the sampler's positive. The negative
            prompt is the sampler's, and so are the ControlNets of both.
    """

    name: str = OWN
    cells: Tensor | None = None
    prompt: Conditioning | None = None


@dataclass(frozen=True, eq=False)
class Branch:
    """One image that is sampled.

    Attributes:
        name: that its result is found by; OWN is the run's own image, which the sampler hands back.
        parts: what it predicts, one or more.
        start: (B, C, h, w), where it begins, in the sampler's scale.
    """

    name: str
    parts: tuple[BranchPart, ...]
    start: Tensor


class BranchControl(Control, ABC):
    """A control whose run samples several images side by side."""

    keeps_negative: bool = False
    """Whether a null text of the inversion is the source's only, and the sampler's negative prompt stays."""

    @abstractmethod
    def branches(self, run: Moment) -> tuple[Branch, ...]:
        """The run's own image first, then those beside it; each may read those behind it in the list.

        Called once per run, before `begin`.
        """

    def acts(self, run: Moment, state: Any) -> bool:
        return True
