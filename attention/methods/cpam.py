"""CPAM: Context-Preserving Adaptive Manipulation, section 3.

Preservation adaptation (Eqs 1-3) lets every pixel outside the target mask attend to the source image's
background only, and the pixels inside to themselves or, to keep an object's look, to the source object.
Localized extraction (Eq 4) shows the prompt to the pixels inside the target mask only.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...host.families import Family, Layer
from ..engine.call import AttentionCall
from ..engine.control import Claim, Control
from ..engine.moment import Moment
from ..masks.cells import check_aspect, for_batch, resize
from ..masks.edit_masks import EditMasks
from ..masks.target import Target

log = logging.getLogger(__name__)

NULL = "cpam null text"
KEY_MASKS = ("target", "source", "union")
RETAIN_LAYER = {"SD1.x": 7, "SD2.x": 7, "SDXL": 54}
"""First layer that keeps an object's look, by family, as the official code sets it."""


@dataclass(frozen=True, eq=False)
class _Places:
    """Indices of image tokens in one layer, for the rows of one image (or of all, when they share masks).

    Attributes:
        rows: which of the target rows.
        inside, outside: queries on either side of the target mask (Eq 3).
        background: source keys that the background reads (Eq 1).
        foreground: source keys that a retained object reads (Eq 2).
    """

    rows: slice
    inside: Tensor
    outside: Tensor
    background: Tensor
    foreground: Tensor


@dataclass(frozen=True, eq=False)
class CPAM(Control):
    """CPAM's two modules.

    Attributes:
        masks: M_s, M_t, whether the object keeps its look, and whether M_t is refined.
        retain_start: share of the steps after which the object is retained (T = 3 of 50).
        retain_layer: first layer in which it is; None is the official code's 7 (the paper: l > 8), for SDXL 54.
        key_mask: source keys that a retained object reads: "target" (the official code), "source" or "union".
        normal_share: share of (step, layer) pairs with normal self-attention (the paper's 10 %).
        localized: whether localized extraction acts.
        resize_rule: how masks are resized to a layer, see `masks.resize`.
        end: share of the steps after which preservation adaptation ends; 1 is the paper's.
    """

    masks: EditMasks
    retain_start: float = 0.06
    retain_layer: int | None = None
    key_mask: str = "target"
    normal_share: float = 0.1
    localized: bool = True
    resize_rule: str = "nearest"
    end: float = 1.0
    name = "CPAM"
    guidable = True

    @property
    def keeps_sums(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Refinement sums maps up."""
        return self.masks.refinement is not None

    def self_layers(self, family: Family) -> tuple[Layer, ...]:
        return family.layers

    def cross_layers(self, family: Family) -> tuple[Layer, ...]:
        return family.layers if self.localized or self.masks.refinement else ()

    def replaces(self, family: Family) -> tuple[Claim, ...]:
        return (Claim("self", family.layers, 0.0, self.end),)

    def prepare(self, run: Moment) -> None:
        """Check the masks, and draw which layers of which steps are normal from the run's seed (one Bernoulli each)."""
        for mask in (self.masks.source, self.masks.target):
            check_aspect(mask, run.size, "edit mask")
        if self.masks.refinement is not None:
            self.masks.refinement.prepare(run)
        if self.masks.retain and (self.retain_layer or 0) >= len(run.family.layers):
            log.warning(
                "CPAM keeps no look: retain_layer is %d, and the model's last layer is %d. Lower it.",
                self.retain_layer,
                len(run.family.layers) - 1,
            )
        rng = torch.Generator().manual_seed(run.seed)
        draws = torch.rand(run.steps + 1, len(run.family.layers), generator=rng)
        run.once((self, "normal"), lambda: (draws < self.normal_share).tolist())
        if self.localized and len(run.guider.conds.get("negative") or []) > 1:
            log.warning(
                "The negative prompt has several parts; CPAM shows the first of them to the kept pixels. Connect one "
                "plain negative prompt."
            )

    def acts(self, run: Moment) -> bool:
        return run.step < round(self.end * run.steps)

    def reads_source(self, run: Moment) -> bool:
        return True

    def _target(self, run: Moment) -> Target:
        """M_t of the moment."""
        return run.once((self, "target"), lambda: Target(self.masks.target, self.masks.refinement))

    def contexts(self, run: Moment) -> Mapping[str, Tensor]:
        """The unconditional prompt, so that outside the target mask both halves of guidance see the same text."""
        if not self.localized:
            return {}
        states = run.context("negative")
        if states is None:
            raise ValueError(
                "CPAM's localized extraction shows the empty prompt to the kept pixels, but the sampler has no "
                "negative conditioning. Use a CFG guider (or KSampler) with an empty negative prompt."
            )
        return {NULL: states}

    def self_attention(self, call: AttentionCall) -> Tensor:
        """Eqs 1-3, for conditional and unconditional rows alike."""
        self._target(call.run).look("self", call)
        if call.run.once((self, "normal"), list)[call.run.step][call.layer.index]:
            return call.own()
        places = self._target(call.run).once((call.shape, call.batch, call.q.device), lambda: self._places(call))
        retained = self._retains(call)
        if len(places) == 1:
            return _compose(call, places[0], retained)
        out = torch.empty_like(call.q)
        for place in places:
            out[place.rows] = _compose(call, place, retained)
        return out

    def _places(self, call: AttentionCall) -> list[_Places]:
        """The masks of this layer's size as indices."""

        def at(mask: Tensor) -> Tensor:
            return for_batch(resize(mask, call.shape, self.resize_rule).flatten(1), call.batch, "edit mask")

        given = self._target(call.run).mask
        target, source = at(given), at(self.masks.source)
        foreground = {"target": target, "source": source, "union": target | source}[self.key_mask]
        sides = (target, ~target, at(~self.masks.source), foreground)
        shared = len(self.masks.source) == 1 and len(given) == 1
        return [
            _Places(
                slice(None) if shared else slice(item, None, call.batch),
                *(mask[item].nonzero()[:, 0].to(call.q.device) for mask in sides),
            )
            for item in range(1 if shared else call.batch)
        ]

    def _retains(self, call: AttentionCall) -> bool:
        started = call.run.step >= round(self.retain_start * call.run.steps)
        first = RETAIN_LAYER[call.run.family.name] if self.retain_layer is None else self.retain_layer
        return self.masks.retain and started and call.layer.index >= first

    def cross_attention(self, call: AttentionCall) -> Tensor:
        """Eq 4, for conditional rows: the prompt inside M_t, the null text elsewhere."""
        target = self._target(call.run)
        target.look("cross", call)
        if not self.localized or not any(call.conditional) or bool(target.mask.all()):
            return call.own()
        assert call.extra is not None
        prompted = target.once(("cross", call.shape, call.conditional), lambda: self._prompted(call))
        elsewhere = call.attend(call.q, *call.extra[NULL])
        return torch.where(prompted, call.own(), elsewhere)

    def cross_map(self, call: AttentionCall, source: Tensor, target: Tensor) -> Tensor:
        """Eq 4: outside M_t no pixel attends to the prompt."""
        if not self.localized:
            return target
        return target * self._inside(call).to(target)[:, None, :, None]

    def _inside(self, call: AttentionCall) -> Tensor:
        """M_t on a layer's image tokens: (B, N) bool."""
        inside = resize(self._target(call.run).mask, call.shape, self.resize_rule).flatten(1)
        return for_batch(inside, call.batch, "edit mask")

    def _prompted(self, call: AttentionCall) -> Tensor:
        """Queries (R, N, 1) that read their own row's text: all of unconditional rows, else those inside M_t."""
        inside = self._inside(call).repeat(len(call.conditional), 1)
        unconditional = ~torch.tensor(call.conditional).repeat_interleave(call.batch)
        return (inside | unconditional[:, None])[..., None].to(call.q.device)

    def denoised(self, run: Moment, denoised: Tensor, x: Tensor, sigma: float) -> Tensor:
        """The end of a step, after which the next one may have another M_t."""
        self._target(run).step_done(run)
        return denoised


def _compose(call: AttentionCall, place: _Places, retained: bool) -> Tensor:
    """Eqs 1-3 for rows that share masks.

    The masks act on keys: masked keys are left out instead of being given -inf, and each query is computed
    once, for the side of Eq 3 that it is on. A side without keys (a mask that covers everything) gives way to
    the other one.
    """
    assert call.source is not None
    rows, q = place.rows, call.q[place.rows]
    k, v = call.source.k[rows], call.source.v[rows]
    everything = not len(place.outside) or not len(place.background)
    inside = slice(None) if everything else place.inside
    if retained and len(place.foreground):
        inner = _attend(call, q[:, inside], k[:, place.foreground], v[:, place.foreground])
    elif everything or not call.plain:
        inner = call.own()[rows][:, inside]
    else:
        inner = _attend(call, q[:, inside], call.k[rows], call.v[rows])
    if everything:
        return inner
    out = torch.empty_like(q)
    out[:, place.inside] = inner
    out[:, place.outside] = _attend(call, q[:, place.outside], k[:, place.background], v[:, place.background])
    return out


def _attend(call: AttentionCall, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of queries, of which there may be none."""
    return call.attend(q, k, v) if q.shape[1] else q
