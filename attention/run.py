"""The state of one sampler run of a patched model. Nothing of it outlives the run."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..inversion.record import Inversion
from .control import Control
from .families import Family, Layer
from .plan import KEY, NULLED, SOURCES, Plan

if TYPE_CHECKING:
    from .guidance import Reading


class Phase(Enum):
    """What the UNet calls of the moment are for."""

    IDLE = "idle"
    CAPTURE = "capture"
    EDIT = "edit"


@dataclass(frozen=True, eq=False)
class Call:
    """One UNet call: whose rows it holds.

    Attributes:
        roles: per chunk of `batch` rows, the key of its conditioning: "positive", "negative", ... or one of
            SOURCES.
        batch: rows per chunk.
        lengths: per chunk, the text tokens of its conditioning.
    """

    run: Run
    roles: tuple[str, ...]
    batch: int
    device: torch.device
    lengths: tuple[int, ...]

    def __deepcopy__(self, memo: dict[int, Any]) -> Call:
        return self

    @cached_property
    def source_rows(self) -> Tensor:
        """Indices of the source's rows."""
        return self._rows([i for i, role in enumerate(self.roles) if role in SOURCES])

    @cached_property
    def target_rows(self) -> Tensor:
        """Indices of the target's rows."""
        return self._rows([i for i, role in enumerate(self.roles) if role not in SOURCES])

    @cached_property
    def sources(self) -> tuple[tuple[str, int, Tensor], ...]:
        """The source's chunks: role, text tokens and indices of the rows."""
        chunks = zip(self.roles, self.lengths, strict=True)
        return tuple((role, n, self._rows([i])) for i, (role, n) in enumerate(chunks) if role in SOURCES)

    def _rows(self, chunks: list[int]) -> Tensor:
        rows = [c * self.batch + b for c in chunks for b in range(self.batch)]
        return torch.tensor(rows, dtype=torch.long, device=self.device)

    @property
    def target_roles(self) -> tuple[str, ...]:
        """Roles of the chunks that are not the source's."""
        return tuple(role for role in self.roles if role not in SOURCES)

    @property
    def target_lengths(self) -> tuple[int, ...]:
        """Text tokens of the chunks that are not the source's."""
        return tuple(n for role, n in zip(self.roles, self.lengths, strict=True) if role not in SOURCES)


@dataclass(eq=False)
class Run:
    """One sampler run.

    Attributes:
        plan: what to do. family: the model's blocks. seed: the sampler node's.
        sigmas: the sampler's schedule, noisy to clean.
        size: (h, w) of the latent.
        guider: the host's guider that runs it, for its processed conditionings.
        sigma, step: where the run is; the step counts the inversion's DDIM steps from the noisy end.
        captured: the source's features of the present step by place, such as ("self", layer index), and role.
        halved: whether the source's two halves of guidance differ, so that a control may want both.
        kept: what controls compute once per run, see `once`.
        acted: controls that have acted in this run.
        apart: whether a packed source did not fit into memory, and runs in a call of its own since.
        evaluations, guiding: rows that went through the UNet to be sampled with, and rows that went for a gradient.
        reading: what the UNet call of the moment is made for, if it is one that is differentiated.
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
    halved: bool = False
    captured: dict[Hashable, dict[str, Any]] = field(default_factory=dict)
    kept: dict[Hashable, Any] = field(default_factory=dict)
    roles_captured: set[str] = field(default_factory=set)
    packed_source: Tensor | None = None
    apart: bool = False
    capture_now: Callable[[], None] | None = None
    cross_tokens: dict[tuple[str, int, int], int] = field(default_factory=dict)
    acted: set[Control] = field(default_factory=set)
    sites_called: set[tuple[str, int]] = field(default_factory=set)
    evaluations: int = 0
    guiding: int = 0
    reading: Reading | None = None
    moved: Tensor | None = None
    _now: dict[Hashable, Any] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> Run:
        return self

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` returns, computed when first asked for in this run."""
        if key not in self.kept:
            self.kept[key] = savable(make)
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
        self._now.clear()
        if self.inversion:
            self.step = self.inversion.step(sigma)
        else:
            # An inversion runs its schedule upwards; neither way is the network asked at the cleanest level.
            self.step = max(0, sum(s >= sigma * (1 - 1e-4) for s in sorted(self.sigmas)[1:]) - 1)

    def now(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` returns, computed when first asked for at this noise level."""
        if key not in self._now:
            self._now[key] = savable(make)
        return self._now[key]

    def within(self, start: float, end: float) -> bool:
        """Whether the present step is in a window given as shares of the steps, its end left out."""
        return round(start * self.steps) <= self.step < round(end * self.steps)

    def acting(self) -> list[Control]:
        """The controls that do something at this step, in order."""
        return self.now("acting", lambda: [control for control in self.controls if control.acts(self)])

    def acting_at(self, kind: str, layer: Layer) -> list[Control]:
        """The controls that act on a layer's "self" or "cross" attention, those first that compute it anew."""
        return self.now((kind, layer.index), lambda: self._acting_at(kind, layer))

    def _acting_at(self, kind: str, layer: Layer) -> list[Control]:
        def replaces(control: Control) -> bool:
            return any(c.kind == kind and layer in c.layers for c in control.replaces(self.family))

        def named(control: Control) -> tuple[Layer, ...]:
            return control.self_layers(self.family) if kind == "self" else control.cross_layers(self.family)

        found = [control for control in self.acting() if layer in named(control)]
        return sorted(found, key=lambda control: not replaces(control))

    def reads_source(self) -> bool:
        """Whether any control needs the source's features at this step."""
        return bool(self._readers())

    def _readers(self) -> list[Control]:
        return self.now("readers", lambda: [control for control in self.acting() if control.reads_source(self)])

    def moves(self) -> bool:
        """Whether any control changes the sampler's latent at this step."""
        return any(control.moves for control in self.acting())

    def packs(self) -> bool:
        """Whether the source rides in the target's call at this step; not where others read it before that."""
        return self.plan.packed and not self.apart and not self.moves()

    def mixer(self) -> Control | None:
        """The control whose second negative prompt runs at this step."""
        return next((control for control in self.acting() if control.second_negative() is not None), None)

    def sources(self) -> tuple[str, ...]:
        """Which of SOURCES run at this step."""
        readers = self._readers()
        if not readers or self.inversion is None:
            return ()
        return SOURCES if self.halved and any(c.both_halves for c in readers) else (KEY,)

    def reads(self, kind: str, layer: Layer) -> bool:
        """Whether any control needs the source's features of a layer at this step."""

        def layers() -> set[int]:
            readers = self._readers()
            named = [c.reads_self(self) if kind == "self" else c.reads_cross(self) for c in readers]
            return {layer.index for part in named for layer in part}

        return layer.index in self.now(("reads", kind), layers)

    def reads_block(self, block: tuple[str, int] | None) -> bool:
        """Whether any control takes a UNet block's residual features from the source at this step."""
        return block in self.now("blocks", lambda: {b for c in self._readers() for b in c.reads_blocks(self)})

    def forget_source(self) -> None:
        """Drop the source's features and what brings them."""
        self.captured.clear()
        self.roles_captured.clear()
        self.packed_source = self.capture_now = None

    @contextmanager
    def guided(self, reading: Reading, alone: Control | None = None) -> Iterator[Reading]:
        """Be in a pass that is differentiated, and on its way back; with `alone`, no control but that one acts."""
        before, self.reading = self._now, reading
        if alone is not None:
            self._now = {"acting": [alone]}
        try:
            with self.during(Phase.EDIT):
                yield reading
        finally:
            self._now, self.reading = before, None

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Be in a phase for a while."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def role_of(self, uuid: Any, index: int) -> tuple[str, int]:
        """Whose conditioning a chunk of a UNet call has, by the identity that the host gives each one.

        Returns:
            the conditioning's key, and its number of text tokens, 0 if it is not known.
        """
        for key, conds in self.guider.conds.items():
            for cond in conds or []:
                if cond.get("uuid") == uuid:
                    states, null = cond.get("model_conds", {}).get("c_crossattn"), self.null_text(key)
                    if null is not None:
                        return key, null.shape[1]
                    return key, 0 if states is None else states.cond.shape[1]
        return ("positive" if index == 0 else "negative"), 0

    def null_text(self, key: str) -> Tensor | None:
        """The inversion's null text (1 or B, L, C) of this step, for a conditioning whose place it takes."""
        return self.inversion.null_at(self.sigma) if self.inversion and key in NULLED else None

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
