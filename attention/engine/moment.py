"""Where a sampler run is: what methods may know of it, and what is computed once per run or per noise level."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...host.families import Family
from ...host.marks import NULLED
from ...host.remarks import Remarks, remarks_here
from ...inversion.record import MATCH, Inversion


@dataclass(eq=False)
class Moment:
    """A noise level of one sampler run. Nothing of it outlives the run.

    Attributes:
        family: the model's blocks. seed: the sampler node's.
        sigmas: the sampler's schedule, noisy to clean.
        size: (h, w) of the latent. batch: images of the run's own.
        guider: the host's guider that runs it, for its processed conditionings.
        inversion: the source image, if any control reads one.
        sigma, step: where the run is; the step counts the inversion's DDIM steps from the noisy end.
        states: what each control holds in this run, by control.
        kept: what is computed once per run, see `once`.
        remarks: what the person is told on the node.
    """

    family: Family
    seed: int
    sigmas: list[float]
    size: tuple[int, int]
    guider: Any
    inversion: Inversion | None = None
    batch: int = 1
    sigma: float = 0.0
    step: int = 0
    states: dict[Any, Any] = field(default_factory=dict)
    kept: dict[Hashable, Any] = field(default_factory=dict)
    remarks: Remarks = field(default_factory=remarks_here)
    _now: dict[Hashable, Any] = field(default_factory=dict)
    _brought: dict[Hashable, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Number of steps by which controls count their windows."""
        return self.inversion.steps if self.inversion else max(1, len(self.sigmas) - 1)

    @property
    def whole(self) -> bool:
        """Whether the run ends where nothing is left to sample: at the inversion's, or the model's, cleanest level."""
        if self.inversion is not None:
            cleanest = self.inversion.sigmas[0]
        else:
            cleanest = float(self.guider.model_patcher.get_model_object("model_sampling").sigma_min)
        return self.sigmas[-1] <= cleanest * (1 + MATCH)

    @property
    def last(self) -> int:
        """The last step that a whole run has, by the count of `step`; one of the papers' count may be left out."""
        levels = self.inversion.sigmas if self.inversion else self.sigmas
        return max(0, len(levels) - 2)

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` returns, computed when first asked for in this run."""
        if key not in self.kept:
            self.kept[key] = savable(make)
        return self.kept[key]

    def now(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` returns, computed when first asked for at this noise level."""
        if key not in self._now:
            self._now[key] = savable(make)
        return self._now[key]

    def brought(self, name: str, given: Tensor, like: Tensor) -> Tensor:
        """A tensor on the device and in the precision of another; brought there once, as long as it is the same."""
        key = (name, like.dtype, like.device)
        before = self._brought.get(key)
        if before is None or before[0] is not given:
            before = self._brought[key] = (given, savable(lambda: given.to(like)))
        return before[1]

    def source(self, device: torch.device) -> Tensor:
        """The source's latent (B, C, h, w) of this noise level in the sampler's scale, on a device.

        Raises:
            ValueError: there is no source, or the noise level lies outside its trajectory.
        """
        inversion = self.inversion
        if inversion is None:
            raise ValueError("This run has no source image: connect an inversion to the edit's node.")
        return self.now(("source", device), lambda: inversion.at(self.sigma, self.trajectory(inversion, device)))

    def trajectory(self, inversion: Inversion, device: torch.device) -> Tensor:
        """The inversion's latents (levels, B, C, h, w) on a device; brought there once."""
        latents = inversion.latents
        return self.brought("trajectory", latents, latents.new_empty((), device=device))

    def move_to(self, sigma: float) -> None:
        """Go to a noise level of the schedule or between two of them."""
        self.sigma = sigma
        self._now.clear()
        if self.inversion:
            self.step = self.inversion.step(sigma)
        else:
            # An inversion runs its schedule upwards; neither way is the network asked at the cleanest level.
            self.step = max(0, sum(s >= sigma * (1 - 1e-4) for s in sorted(self.sigmas)[1:]) - 1)

    def null_text(self, key: str) -> Tensor | None:
        """The inversion's null text (1 or B, L, C) of this step, for a conditioning whose place it takes."""
        inversion = self.inversion
        if inversion is None or key not in NULLED:
            return None
        return self.now("null text", lambda: inversion.null_at(self.sigma))

    def context(self, key: str) -> Tensor | None:
        """Text states (1 or B, L, C) of a conditioning of the guider, such as "negative"; None if it has none.

        The inversion's null text, if it has one, is the negative prompt of the present step.
        """
        null = self.null_text(key)
        if null is not None:
            return null
        for cond in self.guider.conds.get(key) or []:
            states = cond.get("model_conds", {}).get("c_crossattn")
            if states is not None:
                return states.cond
        return None


def savable(make: Callable[[], Any]) -> Any:
    """What `make` returns, computed such that a differentiated pass may save it: not in inference mode."""
    with torch.inference_mode(False), torch.no_grad():
        return make()
