"""The state of one sampler run of a patched model, as the engine sees it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...host.families import Layer
from ...host.marks import KEY, KEY_NEGATIVE, SOURCES
from .acting import Acting
from .acts import Act, Site
from .branches import Branch, BranchControl
from .call import AttentionCall
from .control import Control
from .moment import Moment
from .plan import Plan
from .reading import Reading
from .recorded import Needs, Rows, SourceRecord


class Phase(Enum):
    """What the UNet calls of the moment are for."""

    IDLE = "idle"
    CAPTURE = "capture"
    EDIT = "edit"


@dataclass(eq=False)
class Run(Moment):
    """One sampler run.

    Attributes:
        plan: what to do.
        captured: features of the present step by site and place, and whose they are.
        halved: whether the source's two halves of guidance differ, so that an act may want both.
        acted: controls that have acted in this run.
        apart: whether a packed source did not fit into memory, and runs in a call of its own since.
        branches: the images that are sampled side by side, the run's own first; none for that one alone.
        riding: latents (B, C, h, w) of parts whose rows are in a call of another branch's.
        bring: runs the branches that are read, where the host has put off their rows in such a call.
        ended: the latents that the branches ended with, by name, in DDPM scale.
        evaluations, guiding: rows that went through the UNet to be sampled with, and rows that went for a gradient.
        reading: what the UNet call of the moment is made for, if it is one that is differentiated.
        recorded: what earlier edits have read of the source, and where this one leaves what it reads.
        resumes: whether it goes on where another run ended; left: the controls' states there, as far as known.
    """

    plan: Plan = field(default_factory=Plan)
    phase: Phase = Phase.IDLE
    halved: bool = False
    captured: dict[Hashable, dict[Hashable, Any]] = field(default_factory=dict)
    roles_captured: set[str] = field(default_factory=set)
    packed_source: Tensor | None = None
    apart: bool = False
    capture_now: Callable[[], None] | None = None
    branches: tuple[Branch, ...] = ()
    riding: dict[str, Tensor] = field(default_factory=dict)
    bring: Callable[[], Any] | None = None
    ended: dict[str, Tensor] = field(default_factory=dict)
    cross_tokens: dict[tuple[str, int, int], int] = field(default_factory=dict)
    acted: set[Control] = field(default_factory=set)
    sites_called: set[tuple[Site, int]] = field(default_factory=set)
    evaluations: int = 0
    guiding: int = 0
    reading: Reading | None = None
    moved: Tensor | None = None
    recorded: SourceRecord | None = None
    resumes: bool = False
    left: Mapping[Control, Any] = field(default_factory=dict)
    _acting: Acting | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Run:
        return self

    @property
    def controls(self) -> tuple[Control, ...]:
        """The plan's controls in order."""
        return self.plan.controls

    def own(self, x: Tensor) -> Tensor:
        """The rows of the run's own images in the sampler's batch (R, ...)."""
        return x[: self.batch] if self.branches else x

    def with_own(self, x: Tensor, own: Tensor) -> Tensor:
        """The sampler's batch (R, ...) with other rows (B, ...) for the run's own images."""
        return torch.cat([own, x[self.batch :]]) if self.branches else own

    def null_text(self, key: str) -> Tensor | None:
        own = [control for control in self.controls if isinstance(control, BranchControl) and control.keeps_negative]
        return None if own and key != KEY_NEGATIVE else super().null_text(key)

    def begin(self) -> None:
        """Let every control check the run and make its state."""
        for control in self.controls:
            state = control.begin(self)
            if self.resumes:
                self.move_to(self.sigmas[0])
                state = control.resumed(self, state, self.left.get(control))
            self.states[control] = state

    @cached_property
    def declared(self) -> dict[Control, tuple[Act, ...]]:
        """What each control does in this family's layers."""
        return {control: control.acts_on(self.family) for control in self.controls}

    def layers(self, control: Control, site: Site) -> tuple[Layer, ...]:
        """The layers of a site that a control acts on."""
        return tuple(layer for act in self.declared[control] if act.at is site for layer in act.layers)

    def move_to(self, sigma: float) -> None:
        super().move_to(sigma)
        self._acting = None

    @property
    def acting(self) -> Acting:
        """What is done at this noise level."""
        if self._acting is None:
            self._acting = self._of(self.controls)
        return self._acting

    def _of(self, controls: tuple[Control, ...]) -> Acting:
        acts, active = [], []
        for control in controls:
            state = self.states.get(control)
            done = [(control, act) for act in self.declared[control] if act.holds(self, state)]
            acts += done
            if done or control.acts(self, state):
                active.append(control)
        return Acting(tuple(active), tuple(acts))

    def rewritten(self, call: AttentionCall, source: Tensor, target: Tensor) -> Tensor:
        """What the acting controls make of a cross-attention map (B, H, N, L), in order."""
        for control in self.acting.maps:
            target = control.rewritten(self.states[control], call, source, target)
        return target

    def packs(self) -> bool:
        """Whether source and branches ride in the target's call at this step; not where others read it before that."""
        return self.plan.packed and not self.apart and not self.acting.moves

    @property
    def packs_source(self) -> bool:
        """Whether the source does; not where its features are kept, which must be those of a call of its own."""
        return self.packs() and self.recorded is None

    @property
    def needs(self) -> Needs:
        """What is read of the source at this step."""
        acts = [act for _, act in self.acting.acts if act.reads and not act.of]
        return frozenset((act.at, place, part) for act in acts for place in act.places for part in act.reads)

    @property
    def source_rows(self) -> Rows:
        """Which rows of the source run at this step, and at which noise level."""
        return self.sigma, self.sources()

    @property
    def knows_source(self) -> bool:
        """Whether all of that is there, so that the source need not run."""
        return self.recorded is not None and self.recorded.holds(self.source_rows, self.needs)

    def sources(self) -> tuple[str, ...]:
        """Which of SOURCES run at this step."""
        if not self.acting.reads_source or self.inversion is None:
            return ()
        return SOURCES if self.halved and self.acting.own_half else (KEY,)

    def forget_source(self) -> None:
        """Drop the features that are read, of the source and of branches, and what brings them."""
        self.captured.clear()
        self.roles_captured.clear()
        self.riding = {}
        self.packed_source = self.capture_now = self.bring = None

    @contextmanager
    def guided(self, reading: Reading, alone: Control | None = None) -> Iterator[Reading]:
        """Be in a pass that is differentiated, and on its way back; with `alone`, no control but that one acts."""
        before, self.reading = (self._now, self._acting), reading
        if alone is not None:
            self._now, self._acting = {}, self._of((alone,))
        try:
            with self.during(Phase.EDIT):
                yield reading
        finally:
            (self._now, self._acting), self.reading = before, None

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
                    text = None if states is None else states.cond
                    if self.family.joint:  # where the host fills texts up to a common length
                        text = cond.get("cross_attn", text)
                    return key, 0 if text is None else text.shape[1]
        return ("positive" if index == 0 else "negative"), 0
