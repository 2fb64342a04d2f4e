"""Prompt-to-Prompt: the target's cross-attention maps rewritten from the source's, to keep the layout.

A rewritten map is linear in the two maps, A = A_s T + A_t w, and so is its output:
A V = A_s (T V) + A_t (w V), which is the host's own attention on (Q_s, K_s, T V) and (Q_t, K_t, w V). No map is
formed, and nothing is renormalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...host.families import Family, Layer
from ..engine.call import AttentionCall
from ..engine.checks import check_source_prompt, check_target_prompt
from ..engine.control import Claim, Control
from ..engine.layers import RESOLUTION, layers_of
from ..engine.moment import Moment
from ..engine.substitute import attend_with
from ..words.alignment import TokenMap, factors, find_word, refinement, swap
from ..words.prompt import Prompt

AUTO, SWAP, REFINE = MODES = ("auto", "swap words", "refine")


@dataclass(frozen=True, eq=False)
class P2P(Control):
    """Prompt-to-Prompt. The source's prompt is the one that the image was inverted or drawn with.

    Attributes:
        source, target: the prompts.
        mode: one of MODES; "auto" swaps where both prompts have as many words, else refines.
        cross: share of the steps, start and end, whose cross maps are rewritten (0 to 0.8).
        self_window: share of the steps whose self maps are the source's (0 to 0.4; 0.5 in later code).
        layers: where self maps are, a rule of `layers.layers_of`.
        weights: factors on the maps of words of the target prompt, while its token is rewritten.
        windows: words of the target prompt with a cross window of their own: (word, start, end).
        compat: the released code's token positions behind a swapped word, see `alignment.swap`.
    """

    source: Prompt
    target: Prompt
    mode: str = AUTO
    cross: tuple[float, float] = (0.0, 0.8)
    self_window: tuple[float, float] = (0.0, 0.4)
    layers: str = RESOLUTION
    weights: Sequence[tuple[str, float]] = ()
    windows: Sequence[tuple[str, float, float]] = ()
    compat: bool = False
    name = "Prompt-to-Prompt"
    guidable = True

    @cached_property
    def mapping(self) -> TokenMap:
        """The rewriting, before its gate of steps.

        Raises:
            ValueError: prompts of different numbers of words in a swap, or a word that is not in the target prompt.
        """
        swaps = self.mode == SWAP or (self.mode == AUTO and len(self.source.spelled) == len(self.target.spelled))
        mapping = swap(self.source, self.target, self.compat) if swaps else refinement(self.source, self.target)
        return mapping.scaled(factors(self.target, self.weights))

    @cached_property
    def _places(self) -> tuple[tuple[tuple[int, ...], float, float], ...]:
        return tuple((find_word(self.target, word), start, end) for word, start, end in self.windows)

    def check(self) -> None:
        """Raise ValueError if the prompts and the words named do not fit together."""
        _ = self.mapping, self._places

    def gate(self, step: int, steps: int) -> Tensor:
        """Which target tokens (L_t,) are rewritten at a step: 1 or 0; windows of words before the general one.

        The official code's table has one row more than there are steps: a window ends at int(c (T + 1)).
        """

        def within(start: float, end: float) -> float:
            return float(_floor(start * (steps + 1)) <= step < _floor(end * (steps + 1)))

        gate = torch.full((self.target.length,), within(*self.cross))
        for positions, start, end in self._places:
            gate[list(positions)] = within(start, end)
        return gate

    def now(self, run: Moment) -> TokenMap | None:
        """The rewriting at the run's present step; None when it leaves every map as it is."""

        def make() -> TokenMap | None:
            gate = self.gate(run.step, run.steps)
            return self.mapping.gated(gate) if bool(gate.any()) else None

        return run.now((self, "mapping"), make)

    def _keeps_self(self, run: Moment) -> bool:
        start, end = self.self_window
        return _floor(start * run.steps) <= run.step < _floor(end * run.steps)

    def prepare(self, run: Moment) -> None:
        """Refuse prompts that the image was not inverted with, or that is not sampled with."""
        check_source_prompt(run, self.source, self.name)
        check_target_prompt(run, self.target, self.name)

    def self_layers(self, family: Family) -> tuple[Layer, ...]:
        return layers_of(family, self.layers)

    def cross_layers(self, family: Family) -> tuple[Layer, ...]:
        return family.layers

    def replaces(self, family: Family) -> tuple[Claim, ...]:
        spans = [self.cross, *((start, end) for _, start, end in self.windows)]
        start, end = min(s for s, _ in spans), max(e for _, e in spans)
        return (
            Claim("cross", self.cross_layers(family), start, end),
            Claim("self", self.self_layers(family), *self.self_window),
        )

    def acts(self, run: Moment) -> bool:
        return self._keeps_self(run) or self.now(run) is not None

    def reads_source(self, run: Moment) -> bool:
        return True

    def reads_self(self, run: Moment) -> tuple[Layer, ...]:
        return self.self_layers(run.family) if self._keeps_self(run) else ()

    def reads_cross(self, run: Moment) -> tuple[Layer, ...]:
        return () if self.now(run) is None else self.cross_layers(run.family)

    def self_attention(self, call: AttentionCall) -> Tensor:
        """The source's map with the target's values, in conditional rows."""
        if not self._keeps_self(call.run):
            return call.own()
        return attend_with(call, call.source, "qk", conditional_only=True)

    def cross_attention(self, call: AttentionCall) -> Tensor:
        """The rewritten map times the target's values, in the conditional rows."""
        chunk = self.prompted_chunk(call)
        mapping = self.now(call.run)
        if mapping is None or chunk is None:
            return call.own()
        assert call.source is not None
        rows, length = call.rows(chunk), self.target.length
        transfer, keep = call.run.now((self, call.v.dtype, call.v.device), lambda: _on(mapping, call.v))
        k, v = call.k[rows, :length], call.v[rows, :length]
        out = call.own().clone() if len(call.conditional) > 1 else torch.empty_like(call.q)
        out[rows] = call.attend(call.source.q[rows], call.source.k[rows], transfer @ v)
        if bool(mapping.keep.any()):
            out[rows] += call.attend(call.q[rows], k, keep[:, None] * v)
        return out

    def cross_map(self, call: AttentionCall, source: Tensor, target: Tensor) -> Tensor:
        mapping = self.now(call.run)
        return target if mapping is None else mapping.apply(source, target)

    def copies(self, run: Moment, word: Sequence[int]) -> bool:
        mapping = self.now(run)
        return mapping is not None and not bool(mapping.keep[list(word)].any())

    def prompted_chunk(self, call: AttentionCall) -> int | None:
        """The chunk that has the target prompt; None in a call without it.

        Raises:
            ValueError: the positive conditioning has several parts, or it or the source's is that of other prompts.
        """
        chunks = [i for i, conditional in enumerate(call.conditional) if conditional]
        if not chunks:
            return None
        if len(chunks) > 1:
            raise ValueError(
                f"{self.name} edits one prompt, but the positive conditioning has {len(chunks)} parts. Connect Prompt "
                "with Words directly, without Conditioning (Combine)."
            )
        given = call.lengths[chunks[0]]
        read = self.source.length if call.source is None else call.source.k.shape[1]
        for side, prompt, length in (("target", self.target, given), ("source", self.source, read)):
            if prompt.length != length:
                where = "the sampler's positive" if side == "target" else "the inversion's source"
                raise ValueError(
                    f"{where[0].upper()}{where[1:]} conditioning has {length} text tokens, but the {side} prompt of "
                    f"{self.name} has {prompt.length}. Connect both outputs of one Prompt with Words: its prompt to "
                    f"{self.name} and its conditioning to {where}."
                )
        return chunks[0]


def _floor(x: float) -> int:
    """int() of the official code, safe from 0.58 * 50 = 28.999999."""
    return int(x + 1e-9)


def _on(mapping: TokenMap, like: Tensor) -> tuple[Tensor, Tensor]:
    return mapping.transfer.to(like), mapping.keep.to(like)
