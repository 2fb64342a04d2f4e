"""The state of one sampler run of a patched model. Nothing of it outlives the run."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..inversion.record import Conditioning, Inversion
from .control import Control, Features
from .families import Family
from .plan import KEY, Plan


class Phase(Enum):
    """What the UNet calls of the moment are for."""

    IDLE = "idle"
    CAPTURE = "capture"
    EDIT = "edit"


@dataclass(frozen=True, eq=False)
class Call:
    """One UNet call: whose rows it holds.

    Attributes:
        roles: per chunk of `batch` rows, the key of its conditioning: "positive", "negative", ... or KEY for the
            source.
        batch: rows per chunk.
    """

    run: Run
    roles: tuple[str, ...]
    batch: int
    device: torch.device

    def __deepcopy__(self, memo: dict[int, Any]) -> Call:
        return self

    @cached_property
    def source_rows(self) -> Tensor:
        """Indices of the source's rows."""
        return self._rows(True)

    @cached_property
    def target_rows(self) -> Tensor:
        """Indices of the target's rows."""
        return self._rows(False)

    def _rows(self, source: bool) -> Tensor:
        chunks = [i for i, role in enumerate(self.roles) if (role == KEY) == source]
        rows = [c * self.batch + b for c in chunks for b in range(self.batch)]
        return torch.tensor(rows, dtype=torch.long, device=self.device)

    @property
    def target_roles(self) -> tuple[str, ...]:
        """Roles of the chunks that are not the source's."""
        return tuple(role for role in self.roles if role != KEY)


@dataclass(eq=False)
class Run:
    """One sampler run.

    Attributes:
        plan: what to do. family: the model's blocks. seed: the sampler node's.
        sigmas: the sampler's schedule, noisy to clean.
        size: (h, w) of the latent.
        guider: the host's guider that runs it, for its processed conditionings.
        sigma, step: where the run is; the step counts the inversion's DDIM steps from the noisy end.
        captured: the source's features of the present step by layer index.
        kept: what controls compute once per run, see `once`.
        acted: controls that have acted in this run.
    """

    plan: Plan
    family: Family
    seed: int
    sigmas: list[float]
    size: tuple[int, int]
    guider: Any
    phase: Phase = Phase.IDLE
    sigma: float = 0.0
    step: int = 0
    captured: dict[int, Features] = field(default_factory=dict)
    kept: dict[Hashable, Any] = field(default_factory=dict)
    packed_source: Tensor | None = None
    capture_now: Callable[[], None] | None = None
    cross_tokens: dict[tuple[str, int, int], int] = field(default_factory=dict)
    acted: set[Control] = field(default_factory=set)
    sites_called: set[tuple[str, int]] = field(default_factory=set)
    evaluations: int = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Run:
        return self

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` returns, computed when first asked for in this run."""
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]

    @property
    def controls(self) -> tuple[Control, ...]:
        """The plan's controls in order."""
        return self.plan.controls

    @property
    def inversion(self) -> Inversion | None:
        """The source image."""
        return self.plan.inversion

    @property
    def steps(self) -> int:
        """Number of steps by which controls count their windows."""
        return self.inversion.steps if self.inversion else max(1, len(self.sigmas) - 1)

    def move_to(self, sigma: float) -> None:
        """Go to a noise level of the schedule or between two of them."""
        self.sigma = sigma
        if self.inversion:
            self.step = self.inversion.step(sigma)
        else:
            self.step = max(0, sum(s >= sigma * (1 - 1e-4) for s in self.sigmas[:-1]) - 1)

    def acting(self) -> list[Control]:
        """The controls that do something at this step, in order."""
        return [control for control in self.controls if control.acts(self)]

    def reads_source(self) -> bool:
        """Whether any control needs the source's features at this step."""
        return any(control.reads_source(self) for control in self.acting())

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Be in a phase for a while."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def role_of(self, uuid: Any, index: int) -> str:
        """Whose conditioning a chunk of a UNet call has, by the identity that the host gives each one."""
        for key, conds in self.guider.conds.items():
            if any(cond.get("uuid") == uuid for cond in conds or []):
                return key
        return "positive" if index == 0 else "negative"

    def context(self, key: str) -> Tensor | None:
        """Text states (1 or B, L, C) of a conditioning of the guider, such as "negative"; None if it has none."""
        for cond in self.guider.conds.get(key) or []:
            states = cond.get("model_conds", {}).get("c_crossattn")
            if states is not None:
                return states.cond
        return None


def source_conditioning(conditioning: Conditioning) -> Conditioning:
    """The source prompt as the source branch uses it: text only.

    ControlNets, areas and hooks belong to the edit; on the source they would change what it is meant to keep.

    Raises:
        ValueError: the source prompt has several parts, or an area, a mask or hooks.
    """
    hindering = [k for _, options in conditioning for k in ("area", "mask", "hooks") if options.get(k) is not None]
    if len(conditioning) != 1 or hindering:
        raise ValueError(
            f"The source prompt of an inversion must be one plain conditioning; this one has {len(conditioning)} "
            f"parts{' with ' + ', '.join(hindering) if hindering else ''}. Connect a CLIP Text Encode directly."
        )
    states, options = conditioning[0]
    return [[states, {k: v for k, v in options.items() if k not in ("control", "control_apply_to_uncond")}]]
