"""MasaCtrl: mutual self-attention. The target reads the source's keys and values, so its look goes into a new layout.

In the given steps and layers the target attends to softmax(Q_t K_s^T) V_s, each half of guidance to its own half of
the source. With masks, the object reads the source's object and the rest the source's rest:
out = M_t Att(Q_t, K_s, V_s; M_s) + (1 - M_t) Att(Q_t, K_s, V_s; 1 - M_s).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...host.families import Family, Layer
from ..engine.call import AttentionCall, Features, SourceRows
from ..engine.checks import check_source_prompt
from ..engine.control import Claim, Control
from ..engine.moment import Moment
from ..engine.substitute import attend_with
from ..maps.probabilities import OBJECT_SCALE, cross_map
from ..masks.cells import check_aspect, for_batch, resize
from ..words.alignment import find_words
from ..words.prompt import Prompt

log = logging.getLogger(__name__)

FIRST_LAYER = {"SD1.x": 10, "SD2.x": 10, "SDXL": 44}
"""L by family: the released 10 of 16; of SDXL's 70 the second third of the decoder's deepest blocks."""


@dataclass(frozen=True, eq=False)
class WordMasks:
    """Masks that the cross-attention maps of a word draw, anew in every step.

    Attributes:
        source, target: the prompts; source_words, target_words: the object in each, several words between commas.
        threshold: of the map scaled to 0..1 (0.1 in the released code).
    """

    source: Prompt
    target: Prompt
    source_words: str
    target_words: str
    threshold: float = 0.1

    def columns(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Token positions of the words in the source and in the target prompt; ValueError if one is not there."""
        return find_words(self.source, self.source_words), find_words(self.target, self.target_words)


@dataclass(frozen=True, eq=False)
class MasaCtrl(Control):
    """MasaCtrl.

    Attributes:
        start: share of the steps after which it begins (S = 4 of 50).
        first_layer: L; None takes FIRST_LAYER.
        end: share of the steps after which it stops; 1 is the paper's.
        masks: M_s and M_t, (M, H, W) bool; None for the whole image.
        words: masks from attention maps instead.
        union: the target keeps its own keys and values beside the source's.
    """

    start: float = 0.08
    first_layer: int | None = None
    end: float = 1.0
    masks: tuple[Tensor, Tensor] | None = None
    words: WordMasks | None = None
    union: bool = False
    both_halves: bool = True
    name = "MasaCtrl"

    @property
    def keeps_sums(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Masks from words sum maps up."""
        return self.words is not None

    def self_layers(self, family: Family) -> tuple[Layer, ...]:
        first = FIRST_LAYER[family.name] if self.first_layer is None else self.first_layer
        return family.layers[first:]

    def cross_layers(self, family: Family) -> tuple[Layer, ...]:
        if self.words is None:
            return ()
        last = max((layer.index for layer in self.self_layers(family)), default=-1)
        return tuple(layer for layer in family.layers if layer.scale == OBJECT_SCALE and layer.index < last)

    def replaces(self, family: Family) -> tuple[Claim, ...]:
        return (Claim("self", self.self_layers(family), self.start, self.end),)

    def prepare(self, run: Moment) -> None:
        for mask in self.masks or ():
            check_aspect(mask, run.size, "mask of MasaCtrl")
        if self.words is not None:
            check_source_prompt(run, self.words.source, self.name)
        if not self.self_layers(run.family):
            log.warning(
                "MasaCtrl does nothing: first_layer is %d, and the model's last layer is %d. Lower it.",
                self.first_layer,
                len(run.family.layers) - 1,
            )

    def acts(self, run: Moment) -> bool:
        return run.within(self.start, self.end)

    def reads_source(self, run: Moment) -> bool:
        return bool(self.self_layers(run.family))

    def reads_cross(self, run: Moment) -> tuple[Layer, ...]:
        return self.cross_layers(run.family)

    def cross_attention(self, call: AttentionCall) -> Tensor:
        """Look at the maps of the word; attention stays as it is."""
        if self.words is not None and any(call.conditional):
            assert call.source is not None
            rows = call.rows(call.conditional.index(True))
            here, there = self.words.columns()
            k = call.k[rows, : call.lengths[call.conditional.index(True)]]
            seen = call.run.now((self, "maps"), list)
            seen.append(
                tuple(
                    cross_map(q, keys, call.heads, columns).sum(-1).unflatten(1, call.shape)
                    for q, keys, columns in (
                        (call.source.q[rows], call.source.k[rows], here),
                        (call.q[rows], k, there),
                    )
                )
            )
        return call.own()

    def self_attention(self, call: AttentionCall) -> Tensor:
        """The source's keys and values, each half of guidance its own."""
        assert call.halves is not None
        masks = self._layer_masks(call)
        if masks is None and not self.union:
            return attend_with(call, call.halves, "kv")
        if masks is None:
            everything = torch.ones(1, call.q.shape[1], dtype=torch.bool)
            masks = (everything, everything)
        return _two_sided(call, call.halves, *masks, self.union)

    def _layer_masks(self, call: AttentionCall) -> tuple[Tensor, Tensor] | None:
        """M_s and M_t as (1 or B, N) bool on the CPU; None without masks."""
        if self.words is not None:
            return self._word_masks(call)
        if self.masks is None:
            return None
        source, target = self.masks

        def at(mask: Tensor) -> Tensor:
            cells = resize(mask, call.shape).flatten(1)
            return cells if len(cells) == 1 else for_batch(cells, call.batch, "mask of MasaCtrl")

        return call.run.once((self, call.shape, call.batch), lambda: (at(source), at(target)))

    def _word_masks(self, call: AttentionCall) -> tuple[Tensor, Tensor] | None:
        """From the maps of the layers that this step has run; when it has run none, from those of the step before.

        That is so where the host runs the unconditional half ahead of the prompt's in a call of its own.
        """
        assert self.words is not None
        seen, last = call.run.now((self, "maps"), list), call.run.once((self, "last"), dict)
        if seen:
            last["maps"] = [torch.stack(side).mean(0) for side in zip(*seen, strict=True)]
        if not last:
            return None
        source, target = (self._threshold(side, call) for side in last["maps"])
        return source, target

    def _threshold(self, mean: Tensor, call: AttentionCall) -> Tensor:
        assert self.words is not None
        low, high = mean.amin((1, 2), keepdim=True), mean.amax((1, 2), keepdim=True)
        scaled = (mean - low) / (high - low).clamp_min(torch.finfo(mean.dtype).tiny)
        cells = F.interpolate(scaled[:, None], call.shape, mode="nearest")[:, 0]
        return (cells > self.words.threshold).flatten(1).cpu()


def _two_sided(
    call: AttentionCall, features: Features | SourceRows, source: Tensor, target: Tensor, union: bool
) -> Tensor:
    """Queries inside M_t read the source's keys inside M_s, the others those outside, each query computed once.

    Keys are left out instead of being given -inf. A side of which the source has no keys reads them all.

    Args:
        source, target: (1 or B, N) bool.
        union: the target's own keys and values stand beside the source's.
    """
    out = torch.empty_like(call.q)
    shared = len(source) == len(target) == 1
    for item in range(1 if shared else call.batch):
        rows = slice(None) if shared else slice(item, None, call.batch)
        place = out[rows]
        inside, keys = (mask[item if len(mask) > 1 else 0] for mask in (target, source))
        for queries, kept in ((inside, keys), (~inside, ~keys)):
            chosen = kept if bool(kept.any()) else torch.ones_like(kept)
            if bool(queries.any()):
                index = queries.nonzero()[:, 0].to(call.q.device)
                place[:, index] = _read(call, features, rows, index, chosen, union)
    return out


def _read(
    call: AttentionCall, features: Features | SourceRows, rows: slice, queries: Tensor, keys: Tensor, union: bool
) -> Tensor:
    k, v = features.k[rows], features.v[rows]
    if not bool(keys.all()):
        kept = keys.nonzero()[:, 0].to(k.device)
        k, v = k[:, kept], v[:, kept]
    if union:
        k, v = torch.cat([k, call.k[rows]], 1), torch.cat([v, call.v[rows]], 1)
    return call.attend(call.q[rows][:, queries], k, v)
