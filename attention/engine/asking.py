"""How the acts of a layer are asked: what each is handed, and what it leaves for the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from ...host.families import Layer
from .acts import Act, How, Site
from .call import Attend, AttentionCall, Beside, Features, SourceRows, nothing_beside
from .control import Control
from .features import as_kept, read_features
from .roles import Call, Group

ANY = Act(Site.CROSS, reads="qk")
"""What a map that is read for itself reads of the source, where that is kept."""


class Own:
    """The attention that target rows have without a control; computed when first asked for."""

    def __init__(self, compute: Callable[[], Tensor], plain: bool) -> None:
        self.compute, self.plain = compute, plain
        self.value: Tensor | None = None

    def __call__(self) -> Tensor:
        if self.value is None:
            self.value = self.compute()
        return self.value


@dataclass(frozen=True, eq=False)
class Asking:
    """One attention of the rows of a part, before any control.

    Attributes:
        call, group: whose rows they are. site, layer: where. shape: (h, w) of the feature map.
        q, k, v, heads, attend, extra, beside: see `AttentionCall`.
        fitted: see `read_features`. fills_ahead: see `AttentionCall`.
    """

    call: Call
    group: Group
    site: Site
    layer: Layer
    shape: tuple[int, int]
    q: Tensor
    k: Tensor
    v: Tensor
    heads: int
    attend: Attend
    extra: Mapping[str, tuple[Tensor, Tensor]] | None = None
    beside: Beside = nothing_beside
    fitted: Callable[[Features], Features] = as_kept
    fills_ahead: bool = False
    _sources: dict[tuple[str, bool], SourceRows | None] = field(default_factory=dict)

    def ask(self, own: Own) -> Own:
        """Ask the controls that act here, each of them standing on the one before it."""
        run = self.call.run
        for control, act in run.acting.at(self.site, self.layer.index, self.group.part):
            if act.do is None:
                continue
            if act.how is not How.LOOKS:
                own = Own(partial(act.do, self.call_of(own, control, act)), plain=False)
            elif run.reading is None:  # a pass that is differentiated is none of the run's own
                act.do(self.call_of(own, control, act))
        return own

    def call_of(self, own: Own, control: Control | None = None, act: Act = ANY) -> AttentionCall:
        """What an act is handed: the same for all of them, but for what it stands on and reads of the source."""
        run: Any = self.call.run
        return AttentionCall(
            run=run,
            layer=self.layer,
            shape=self.shape,
            q=self.q,
            k=self.k,
            v=self.v,
            conditional=self.group.conditional,
            batch=self.call.batch,
            own=own,
            attend=self.attend,
            source=self._source(act.of, act.own_half) if act.reads else None,
            state=None if control is None else run.states.get(control),
            heads=self.heads,
            lengths=tuple(n or self.k.shape[1] for n in self.group.lengths),
            fills_ahead=self.fills_ahead,
            extra=self.extra,
            guiding=run.reading is not None,
            rewrite=run.rewritten,
            beside=self.beside,
        )

    def _source(self, of: str, own_half: bool) -> SourceRows | None:
        """The features that acts read, for each of the group's chunks; None if nothing was kept."""
        key = (of, own_half)
        if key not in self._sources:
            place = (self.site, self.layer.index)
            self._sources[key] = read_features(self.call, self.group, place, of, own_half, self.q.dtype, self.fitted)
        return self._sources[key]
