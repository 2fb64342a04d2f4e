"""MasaCtrl: mutual self-attention. The target reads the source's keys and values, so its look goes into a new layout.

In the given steps and layers the target attends to softmax(Q_t K_s^T) V_s, each half of guidance to its own half of
the source. With masks, the object reads the source's object and the rest the source's rest:
out = M_t Att(Q_t, K_s, V_s; M_s) + (1 - M_t) Att(Q_t, K_s, V_s; 1 - M_s).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...host.families import Family, Layer, LayerByFamily
from ...host.remarks import Kind
from ..engine.acts import Act, How, Site, Window
from ..engine.call import AttentionCall
from ..engine.checks import check_source_prompt, check_target_prompt
from ..engine.control import Control, missing_steps
from ..engine.layers import layers_from
from ..engine.moment import Moment, savable
from ..engine.substitute import attend_with
from ..maps.seen import object_layers, source_words_of, words_of
from ..maps.sizes import alike
from ..masks.cells import check_aspect, for_batch, resize
from ..masks.judged import judge_mask
from ..words.alignment import find_words
from ..words.prompt import Prompt

FIRST_LAYER = LayerByFamily("MasaCtrl's first layer", {"SD1.x": 10, "SD2.x": 10, "SDXL": 44})
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
    on_joint = True

    def acts_on(self, family: Family) -> tuple[Act, ...]:
        window, layers = self._window, self.layers(family)
        acts = [Act(Site.SELF, layers, during=window, do=self.attend, reads="kv", own_half=self.both_halves)]
        if self.words is not None:
            last = max((layer.index for layer in layers), default=-1)
            looked = tuple(la for la in object_layers(family) if la.index < last)
            acts.append(Act(Site.CROSS, looked, during=window, do=self.look, reads="qk", how=How.LOOKS))
        return tuple(acts)

    def layers(self, family: Family) -> tuple[Layer, ...]:
        """From L on; of a transformer without L, the blocks that Stable Flow replaces keys and values in."""
        return layers_from(family, self.first_layer, FIRST_LAYER)

    def fits(self, size: tuple[int, int]) -> None:
        """Refuse masks of another picture."""
        for mask in self.masks or ():
            check_aspect(mask, size, "mask of MasaCtrl")

    def begin(self, run: Moment) -> Seen:
        for mask in self.masks or ():
            judge_mask(run, mask, self.name)
        if self.words is not None:
            check_source_prompt(run, self.words.source, self.name)
            check_target_prompt(run, self.words.target, self.name)
        if not self.layers(run.family):
            run.remarks.add(
                Kind.IGNORED,
                f"Lower MasaCtrl's first_layer: MasaCtrl does nothing: first_layer is {self.first_layer}, and the "
                f"model's last layer is {len(run.family.layers) - 1}.",
            )
        return Seen()

    def resumed(self, run: Moment, state: Seen, before: Seen | None) -> Seen:
        """The word's maps of the last step, which count until the next ones are there."""
        if self.words is None:
            return state
        if before is None and run.step > self._window.first(run.steps):
            raise missing_steps(run, self.name, "the maps of its words")
        return state if before is None else Seen(sigma=before.sigma, maps=list(before.maps), mean=before.mean)

    @property
    def _window(self) -> Window:
        return Window(self.start, self.end, released=True)

    def look(self, call: AttentionCall) -> None:
        """Add the maps of the word."""
        if self.words is None or not any(call.conditional):
            return
        chunk = call.conditional.index(True)
        words, (here, there) = self.words, self.words.columns()
        maps = (
            source_words_of(call, chunk, here, words.source.length),
            words_of(call, chunk, there, words.target.length),
        )
        call.state.add(call.run.sigma, tuple(shares.sum(-1).unflatten(1, call.shape) for shares in maps))

    def attend(self, call: AttentionCall) -> Tensor:
        """The source's keys and values, each half of guidance its own."""
        if self.words is not None:
            masks = call.state.masks(call.shape, self.words.threshold)
            return attend_with(call, "kv") if masks is None and not self.union else _masked(call, masks, self.union)
        if self.masks is None and not self.union:
            return attend_with(call, "kv")
        key = (call.shape, call.batch, call.q.device)
        places = call.state.places
        if key not in places:
            places[key] = savable(lambda: _places(call, self.masks))
        return _two_sided(call, places[key], self.union)


WordMaps = tuple[Tensor, ...]
"""A word's map (B, h, w) in the source and in the target."""


@dataclass
class Seen:
    """MasaCtrl in one run.

    Attributes:
        places: what `_places` gives, by size of the map, batch and device.
        sigma: noise level of `maps`, those of the layers that this step has run; `mean`: of them all.
    """

    places: dict[tuple[Any, ...], list[Place]] = field(default_factory=dict)
    sigma: float = -1.0
    maps: list[WordMaps] = field(default_factory=list)
    mean: WordMaps | None = None

    def add(self, sigma: float, maps: WordMaps) -> None:
        """Add a layer's maps; the first one of a step replaces those of the step before.

        Until then these count: the host may run the unconditional half ahead of the prompt's in a call of its own.
        """
        if sigma != self.sigma:
            self.sigma, self.maps = sigma, []
        self.maps.append(maps)
        self.mean = tuple(torch.stack(alike(side)).mean(0) for side in zip(*self.maps, strict=True))

    def masks(self, shape: tuple[int, int], threshold: float) -> tuple[Tensor, Tensor] | None:
        """M_s and M_t as (B, N) bool on the maps' device; None as long as no map was seen."""
        if self.mean is None:
            return None
        source, target = (_above(side, shape, threshold) for side in self.mean)
        return source, target


def _above(mean: Tensor, shape: tuple[int, int], threshold: float) -> Tensor:
    """Where a map (B, h, w), scaled to 0..1, is above a threshold, at a layer's size: (B, N) bool."""
    low, high = mean.amin((1, 2), keepdim=True), mean.amax((1, 2), keepdim=True)
    scaled = (mean - low) / (high - low).clamp_min(torch.finfo(mean.dtype).tiny)
    return (F.interpolate(scaled[:, None], shape, mode="nearest")[:, 0] > threshold).flatten(1)


@dataclass(frozen=True, eq=False)
class Place:
    """Queries of some rows, and the source's keys that they read; None for all of them.

    Attributes:
        rows: which of the target rows.
    """

    rows: slice
    queries: Tensor
    keys: Tensor | None


def _places(call: AttentionCall, masks: tuple[Tensor, Tensor] | None) -> list[Place]:
    """Which queries read which keys: those inside M_t inside M_s, the others outside, each query once.

    A side of which the source has no keys reads them all. They are found once per run and layer size.
    """

    def at(mask: Tensor) -> Tensor:
        cells = resize(mask, call.shape).flatten(1)
        return cells if len(cells) == 1 else for_batch(cells, call.batch, "mask of MasaCtrl")

    everything = torch.ones(1, call.q.shape[1], dtype=torch.bool)
    source, target = (everything, everything) if masks is None else (at(masks[0]), at(masks[1]))
    shared, places = len(source) == len(target) == 1, []
    for item in range(1 if shared else call.batch):
        rows = slice(None) if shared else slice(item, None, call.batch)
        inside, keys = (mask[item if len(mask) > 1 else 0] for mask in (target, source))
        for queries, kept in ((inside, keys), (~inside, ~keys)):
            if bool(queries.any()):
                whole = not bool(kept.any()) or bool(kept.all())
                index = None if whole else kept.nonzero()[:, 0].to(call.q.device)
                places.append(Place(rows, queries.nonzero()[:, 0].to(call.q.device), index))
    return places


def _two_sided(call: AttentionCall, places: list[Place], union: bool) -> Tensor:
    """Each side's queries read its keys; keys are left out instead of being given -inf.

    Args:
        union: the target's own keys and values stand beside the source's.
    """
    out, features = torch.empty_like(call.q), call.from_source
    for place in places:
        rows = place.rows
        k, v = features.k[rows], features.v[rows]
        if place.keys is not None:
            k, v = k[:, place.keys], v[:, place.keys]
        if union:
            k, v = torch.cat([k, call.k[rows]], 1), torch.cat([v, call.v[rows]], 1)
        out[rows][:, place.queries] = call.attend(call.q[rows][:, place.queries], k, v, rows=rows)
    return out


def _masked(call: AttentionCall, masks: tuple[Tensor, Tensor] | None, union: bool) -> Tensor:
    """The same with masks (B, N) that change in every step: they stay on the device, and keys get -inf.

    To gather queries and keys would be to wait for the device in every layer.
    """
    k, v = call.from_source.k, call.from_source.v
    n = call.q.shape[1]
    if masks is None:
        seen = torch.ones(call.batch, n, k.shape[1], dtype=torch.bool, device=call.q.device)
    else:
        source, target = masks
        there = torch.stack([~source, source]).any(-1)  # (2, B): whether either side has keys
        alone = ~torch.where(target, there[1][:, None], there[0][:, None])
        seen = (target[:, :, None] == source[:, None, :]) | alone[:, :, None]
    if union:
        k, v = torch.cat([k, call.k], 1), torch.cat([v, call.v], 1)
        seen = torch.cat([seen, torch.ones_like(seen[:, :, :n])], -1)
    rows = len(call.q) // call.batch
    mask = torch.zeros_like(seen, dtype=call.q.dtype).masked_fill(~seen, float("-inf"))
    return call.attend(call.q, k, v, mask.repeat(rows, 1, 1))
