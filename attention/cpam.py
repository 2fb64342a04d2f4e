"""CPAM: Context-Preserving Adaptive Manipulation, section 3.

Preservation adaptation (Eqs 1-3) lets every pixel outside the target mask attend to the source image's
background only, and the pixels inside to themselves or, to keep an object's look, to the source object.
Localized extraction (Eq 4) shows the prompt to the pixels inside the target mask only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .control import AttentionCall, Control
from .edit_masks import EditMasks
from .families import Family, Layer
from .masks import for_batch, resize
from .run import Run

NULL = "cpam null text"
KEY_MASKS = ("target", "source", "union")
RETAIN_LAYER = {"SD1.x": 7, "SD2.x": 7, "SDXL": 54}
"""First layer that keeps an object's look, by family, as the official code sets it."""


@dataclass(frozen=True, eq=False)
class CPAM(Control):
    """CPAM's two modules.

    Attributes:
        masks: M_s, M_t and whether the object keeps its look.
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

    def self_layers(self, family: Family) -> tuple[Layer, ...]:
        return family.layers

    def cross_layers(self, family: Family) -> tuple[Layer, ...]:
        return family.layers if self.localized else ()

    def prepare(self, run: Run) -> None:
        """Draw which layers of which steps are normal, from the run's seed (one Bernoulli draw per pair)."""
        rng = torch.Generator().manual_seed(run.seed)
        draws = torch.rand(run.steps + 1, len(run.family.layers), generator=rng)
        run.drawn[self] = draws < self.normal_share

    def acts(self, run: Run) -> bool:
        return run.step < round(self.end * run.steps)

    def reads_source(self, run: Run) -> bool:
        return True

    def contexts(self, run: Run) -> Mapping[str, Tensor]:
        """The unconditional prompt, so that outside the target mask both halves of guidance see the same text."""
        states = run.context("negative")
        if states is None:
            raise ValueError(
                "CPAM's localized extraction shows the empty prompt to the kept pixels, but the sampler has no "
                "negative conditioning. Use a CFG guider (or KSampler) with an empty negative prompt."
            )
        return {NULL: states}

    def self_attention(self, call: AttentionCall) -> Tensor:
        """Eqs 1-3, for conditional and unconditional rows alike."""
        if bool(call.run.drawn[self][call.run.step, call.layer.index]):
            return call.own()
        inside = resize(self.masks.target, call.shape, self.resize_rule)
        outside_source = resize(~self.masks.source, call.shape, self.resize_rule)
        inside, outside_source, foreground = (
            for_batch(m.flatten(1).to(call.q.device), call.batch, "edit mask")
            for m in (inside, outside_source, self._foreground_keys(call))
        )
        retained = self._retains(call)
        if len(self.masks.source) == 1 and len(self.masks.target) == 1:
            return _compose(call, slice(None), inside[0], outside_source[0], foreground[0], retained)
        out = torch.empty_like(call.q)
        for item in range(call.batch):
            rows = slice(item, None, call.batch)
            out[rows] = _compose(call, rows, inside[item], outside_source[item], foreground[item], retained)
        return out

    def _retains(self, call: AttentionCall) -> bool:
        started = call.run.step >= round(self.retain_start * call.run.steps)
        first = RETAIN_LAYER[call.run.family.name] if self.retain_layer is None else self.retain_layer
        return self.masks.retain and started and call.layer.index >= first

    def _foreground_keys(self, call: AttentionCall) -> Tensor:
        """Source keys (M, h, w) that a retained object reads (Eq 2: those in M_t)."""
        target, source = (resize(m, call.shape, self.resize_rule) for m in (self.masks.target, self.masks.source))
        return {"target": target, "source": source, "union": target | source}[self.key_mask]

    def cross_attention(self, call: AttentionCall) -> Tensor:
        """Eq 4, for conditional rows: the prompt inside M_t, the null text elsewhere."""
        rows = call.conditional_rows()
        if not rows.any():
            return call.own()
        assert call.extra is not None
        k_null, v_null = call.extra[NULL]
        inside = for_batch(resize(self.masks.target, call.shape, self.resize_rule).flatten(1), call.batch, "edit mask")
        if inside.all():
            return call.own()
        inside = inside.to(call.q.device).repeat(len(call.conditional), 1)
        elsewhere = call.attend(call.q, k_null, v_null)
        return torch.where((inside | ~rows[:, None])[..., None], call.own(), elsewhere)


def _compose(
    call: AttentionCall, rows: slice, inside: Tensor, background: Tensor, foreground: Tensor, retained: bool
) -> Tensor:
    """Eqs 1-3 for rows that share masks: queries inside (N,) and outside the target, keys by mask (N,).

    The masks act on keys; masked keys are left out instead of being given -inf, and each query is computed
    once, for the side of Eq 3 that it is on. A side without keys (a mask that covers everything) gives way to
    the other one.
    """
    assert call.source is not None
    q, source = call.q[rows], call.source
    if retained and foreground.any():
        inner = _masked(call, q, source.k[rows], source.v[rows], foreground, inside)
    elif inside.all() or not call.plain:
        inner = call.own()[rows][:, inside]
    else:
        inner = call.attend(q[:, inside], call.k[rows], call.v[rows]) if inside.any() else q[:, inside]
    if inside.all():
        return inner
    if not background.any():
        return call.own()[rows]
    out = torch.empty_like(q)
    out[:, ~inside] = _masked(call, q, source.k[rows], source.v[rows], background, ~inside)
    out[:, inside] = inner
    return out


def _masked(call: AttentionCall, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, queries: Tensor) -> Tensor:
    """Attention of the chosen queries (N,) on the chosen keys (L,) only."""
    if not queries.any():
        return q[:, queries]
    return call.attend(q[:, queries], k[:, keys], v[:, keys])
