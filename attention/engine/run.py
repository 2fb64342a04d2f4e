"""The state of one sampler run of a patched model. Nothing of it outlives the run."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from torch import Tensor

from ...host.families import Layer
from ...host.marks import KEY, SOURCES
from .call import AttentionCall
from .control import Control
from .moment import Moment
from .plan import Plan
from .reading import Reading


class Phase(Enum):
    """What the UNet calls of the moment are for."""

    IDLE = "idle"
    CAPTURE = "capture"
    EDIT = "edit"


@dataclass(eq=False)
class Run(Moment):
    """One sampler run, as the engine sees it.

    Attributes:
        plan: what to do.
        captured: the source's features of the present step by place, such as ("self", layer index), and role.
        halved: whether the source's two halves of guidance differ, so that a control may want both.
        acted: controls that have acted in this run.
        apart: whether a packed source did not fit into memory, and runs in a call of its own since.
        evaluations, guiding: rows that went through the UNet to be sampled with, and rows that went for a gradient.
        reading: what the UNet call of the moment is made for, if it is one that is differentiated.
    """

    plan: Plan = field(default_factory=Plan)
    phase: Phase = Phase.IDLE
    halved: bool = False
    captured: dict[Hashable, dict[str, Any]] = field(default_factory=dict)
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

    def __deepcopy__(self, memo: dict[int, Any]) -> Run:
        return self

    @property
    def controls(self) -> tuple[Control, ...]:
        """The plan's controls in order."""
        return self.plan.controls

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

    def rewritten(self, call: AttentionCall, source: Tensor, target: Tensor) -> Tensor:
        """What the acting controls make of a cross-attention map (B, H, N, L), in order."""
        for control in self.acting():
            target = control.cross_map(call, source, target)
        return target

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
