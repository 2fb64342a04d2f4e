"""Prompt-to-Prompt: the target's cross-attention maps rewritten from the source's, to keep the layout.

A rewritten map is linear in the two maps, A = A_s T + A_t w, and so is its output:
A V = A_s (T V) + A_t (w V), which is the host's own attention on (Q_s, K_s, T V) and (Q_t, K_t, w V). No map is
formed, and nothing is renormalised.

On a transformer's joint attention A_s and A_t are the words' columns of the two joint softmaxes, each over all of its
own text and image, for queries of the image; text queries keep their own attention (Shin et al. 2025). The image's
columns are the target's, or in the window of self maps the source's, of the same softmax again. So every column says
what it said where it was taken from, as in the paper; a row adds up to one where all of it is taken from one side, and
else to one plus the difference of what source and target give to their words. Dividing by that would make what an
unchanged word gets depend on what a changed one does, and undo attention re-weighting in part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...host.families import Family
from ...host.remarks import Kind
from ..engine.acts import Act, Site, Window
from ..engine.call import AttentionCall
from ..engine.checks import check_source_prompt, check_target_prompt
from ..engine.control import MapControl
from ..engine.layers import RESOLUTION, layers_of
from ..engine.moment import Moment, savable
from ..engine.substitute import attend_with
from ..words.alignment import TokenMap, align_refined, align_swapped, factors, find_word, swappable
from ..words.prompt import Prompt

AUTO, SWAP, REFINE = MODES = ("auto", "swap words", "refine")


@dataclass(frozen=True, eq=False)
class P2P(MapControl):
    """Prompt-to-Prompt. The source's prompt is the one that the image was inverted or drawn with.

    Attributes:
        source, target: the prompts.
        mode: one of MODES; "auto" swaps where both prompts have as many words, else refines.
        cross: share of the steps, start and end, whose cross maps are rewritten (0 to 0.8).
        self_window: share of the steps whose self maps are the source's (0 to 0.4; 0.5 in later code).
        layers: where self maps are, a rule of `layers.layers_of`.
        weights: factors on the maps of words of the target prompt, while its token is rewritten.
        windows: words of the target prompt with a cross window of their own: (word, start, end).
        compat: the released code's token positions behind a swapped word, see `alignment.align_swapped`.
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
    on_joint = True

    @cached_property
    def mapping(self) -> TokenMap:
        """The rewriting, before its gate of steps.

        Raises:
            ValueError: prompts of different numbers of words in a swap, or a word that is not in the target prompt.
        """
        swaps = self.mode == SWAP or (self.mode == AUTO and swappable(self.source, self.target))
        mapping = (
            align_swapped(self.source, self.target, self.compat) if swaps else align_refined(self.source, self.target)
        )
        return mapping.scaled(factors(self.target, self.weights))

    @cached_property
    def _places(self) -> tuple[tuple[tuple[int, ...], float, float], ...]:
        return tuple((find_word(self.target, word), start, end) for word, start, end in self.windows)

    def check(self) -> None:
        """Raise ValueError if the prompts and the words named do not fit together."""
        _ = self.mapping, self._places

    @property
    def _whole(self) -> Window:
        """The steps in which any token is rewritten.

        The official code's table has one row more than there are steps: a window ends at int(c (T + 1)).
        """
        spans = [self.cross, *((start, end) for _, start, end in self.windows)]
        return Window(min(s for s, _ in spans), max(e for _, e in spans), released=True, further=1)

    def gate(self, step: int, steps: int) -> Tensor:
        """Which target tokens (L_t,) are rewritten at a step: 1 or 0; windows of words before the general one."""

        def within(start: float, end: float) -> float:
            return float(step in Window(start, end, released=True, further=1).of(steps))

        gate = torch.full((self.target.length,), within(*self.cross))
        for positions, start, end in self._places:
            gate[list(positions)] = within(start, end)
        return gate

    def acts_on(self, family: Family) -> tuple[Act, ...]:
        maps = {"during": self._whole, "when": self._rewrites, "do": self.rewrite, "reads": "qk"}
        own = Window(*self.self_window, released=True)
        return (
            Act(Site.CROSS, family.layers, **maps),
            Act(Site.SELF, layers_of(family, self.layers), during=own, do=self.keep_self, reads="qk"),
        )

    def begin(self, run: Moment) -> Rewriting:
        """Refuse prompts that the image was not inverted with, or that is not sampled with."""
        check_source_prompt(run, self.source, self.name)
        check_target_prompt(run, self.target, self.name)
        self._judge_prompts(run)
        return Rewriting(self)

    def _judge_prompts(self, run: Moment) -> None:
        """What is asked for by two captions: that they differ, and that there is one."""
        if not self.source.content:
            run.remarks.add(
                Kind.DOUBTFUL,
                f"Describe the photograph in the source prompt: it is empty, and {self.name} carries over the maps of "
                "its words.",
            )
        if self.source.ids == self.target.ids and not self.weights:
            run.remarks.add(
                Kind.DOUBTFUL,
                f"Change a word in the target prompt, or weigh one: {self.name}'s two prompts are the same, which asks "
                "for no edit.",
            )

    def _rewrites(self, run: Moment, state: Rewriting) -> bool:
        return state.now(run) is not None

    def keep_self(self, call: AttentionCall) -> Tensor:
        """The source's map with the target's values, in conditional rows.

        On joint attention with the columns of the source's own softmax where the words' are taken from it too, else
        (as in FPE) with the target's text in that softmax.
        """
        joint = call.run.family.joint and call.state.now(call.run) is not None
        text = "source" if joint else "own"
        return attend_with(call, "qk", conditional_only=True, text=text)

    def rewrite(self, call: AttentionCall) -> Tensor:
        """The rewritten map times the target's values, in the conditional rows."""
        chunk, state = self.prompted_chunk(call), call.state
        if chunk is None:
            return call.own()
        rows, words, source = call.rows(chunk), call.text(chunk), call.from_source
        transfer, keep, keeps = state.on(call.run, call.v)
        k, v = call.k[rows, words], call.v[rows, words]
        out = call.own().clone() if len(call.conditional) > 1 else torch.empty_like(call.q)
        out[rows] = call.attend(source.q[rows], source.k[rows], transfer @ v, rows=rows, text="source")
        if keeps:
            out[rows] += call.attend(call.q[rows], k, keep[:, None] * v, rows=rows)
        return out

    def rewritten(self, state: Rewriting, call: AttentionCall, source: Tensor, target: Tensor) -> Tensor:
        if state.now(call.run) is None:
            return target
        transfer, keep, _ = state.on(call.run, source)
        return source @ transfer + target * keep

    def copies(self, run: Moment, state: Rewriting, word: Sequence[int]) -> bool:
        mapping = state.now(run)
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
        read = call.from_source.k.shape[1]
        for side, prompt, length in (("target", self.target, given), ("source", self.source, read)):
            if prompt.length != length:
                where = "the sampler's positive" if side == "target" else "the inversion's source"
                raise ValueError(
                    f"{where[0].upper()}{where[1:]} conditioning has {length} text tokens, but the {side} prompt of "
                    f"{self.name} has {prompt.length}. Connect both outputs of one Prompt with Words: its prompt to "
                    f"{self.name} and its conditioning to {where}."
                )
        return chunks[0]


class Rewriting:
    """Prompt-to-Prompt in one run: the rewriting of the present step, and where it was brought to."""

    def __init__(self, control: P2P) -> None:
        self._control = control
        self._step = -1
        self._gate: Tensor | None = None
        self._mapping: TokenMap | None = None
        self._on: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor, bool]] = {}

    def now(self, run: Moment) -> TokenMap | None:
        """The rewriting at the run's present step; None when it leaves every map as it is."""
        if self._step != run.step:
            self._step, gate = run.step, self._control.gate(run.step, run.steps)
            if self._gate is None or not torch.equal(gate, self._gate):
                self._gate, self._on = gate, {}
                self._mapping = savable(lambda: self._control.mapping.gated(gate)) if bool(gate.any()) else None
        return self._mapping

    def on(self, run: Moment, like: Tensor) -> tuple[Tensor, Tensor, bool]:
        """Its transfer and keep on the device of a tensor, and whether anything is kept; brought there once a gate."""
        mapping, key = self.now(run), (like.dtype, like.device)
        if mapping is None:
            raise RuntimeError("Prompt-to-Prompt rewrites nothing at this step: its act has to say so.")
        if key not in self._on:
            kept = bool(mapping.keep.any())
            self._on[key] = savable(lambda: (mapping.transfer.to(like), mapping.keep.to(like), kept))
        return self._on[key]
