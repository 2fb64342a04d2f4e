"""CPAM: Context-Preserving Adaptive Manipulation, section 3.

Preservation adaptation (Eqs 1-3) lets every pixel outside the target mask attend to the source image's
background only, and the pixels inside to themselves or, to keep an object's look, to the source object.
Localized extraction (Eq 4) shows the prompt to the pixels inside the target mask only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...host.families import Family, LayerByFamily
from ...host.remarks import Kind
from ..engine.acts import NULL_TEXT, Act, How, Site, Window
from ..engine.call import AttentionCall
from ..engine.control import LatentControl, MapControl
from ..engine.layers import layers_from
from ..engine.moment import Moment, savable
from ..masks.cells import check_aspect, for_batch, resize
from ..masks.edit_masks import EditMasks
from ..masks.judged import judge_empty_prompts, judge_mask
from ..masks.places import Places, on_device
from ..masks.refinement import RefinedRun
from ..masks.target import Target

KEY_MASKS = ("target", "source", "union")
RETAIN_LAYER = LayerByFamily("CPAM's retain layer", {"SD1.x": 7, "SD2.x": 7, "SDXL": 54})
"""First layer that keeps an object's look, by family, as the official code sets it."""


@dataclass(frozen=True, eq=False)
class CPAM(MapControl, LatentControl):
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
    on_joint = True
    guidable = True

    def acts_on(self, family: Family) -> tuple[Act, ...]:
        window = Window(0.0, self.end, released=True)
        whole = self.localized and family.joint
        acts = [Act(Site.SELF, family.layers, during=window, do=self.preserve, reads="kv", whole=whole)]
        if self.localized and not family.joint:
            acts.append(
                Act(
                    Site.CROSS,
                    family.layers,
                    during=window,
                    do=self.extract,
                    how=How.STANDS_ON,
                    contexts=self._unconditional,
                )
            )
        refinement = self.masks.refinement
        if refinement is not None:
            looks = (
                (Site.CROSS, refinement.word_layers(family), _look_at_words),
                (Site.SELF, refinement.own_layers(family), _look_at_itself),
            )
            seen = [Act(site, layers, during=window, do=do, how=How.LOOKS) for site, layers, do in looks]
            # The released code looks before it shows the prompt, so that a layer sees the mask that it completes.
            acts = [*seen, *acts] if refinement.released else [*acts, *seen]
        return tuple(acts)

    def fits(self, size: tuple[int, int]) -> None:
        """Refuse masks of another picture."""
        for mask in (self.masks.source, self.masks.target):
            check_aspect(mask, size, "edit mask")

    def begin(self, run: Moment) -> Manipulation:
        """Draw which layers of which steps are normal from the run's seed (one Bernoulli each)."""
        judge_mask(run, self.masks.source, self.name)
        if self.masks.refinement is not None:
            self.masks.refinement.check(run)
        if self.masks.retain and (self.retain_layer or 0) >= len(run.family.layers):
            run.remarks.add(
                Kind.IGNORED,
                f"Lower CPAM's retain_layer: CPAM keeps no look: retain_layer is {self.retain_layer}, and the model's "
                f"last layer is {len(run.family.layers) - 1}.",
            )
        if self.localized and not run.family.joint:
            judge_empty_prompts(run, self.name)
        draws = torch.rand(run.steps + 1, len(run.family.layers), generator=torch.Generator().manual_seed(run.seed))
        return Manipulation(Target(self.masks.target, self.masks.refinement), (draws < self.normal_share).tolist())

    def resumed(self, run: Moment, state: Manipulation, before: Manipulation | None) -> Manipulation:
        """The refined mask, and the maps that it was made of."""
        return replace(state, target=state.target.resumed(run, before and before.target))

    def acts(self, run: Moment, state: Manipulation) -> bool:
        """As long as it acts in layers, it sees steps end."""
        return False

    def _unconditional(self, run: Moment, state: Manipulation) -> Mapping[str, Tensor]:
        """The unconditional prompt, so that outside the target mask both halves of guidance see the same text."""
        states = run.context("negative")
        if states is None:
            raise ValueError(
                "CPAM's localized extraction shows the empty prompt to the kept pixels, but the sampler has no "
                "negative conditioning. Use a CFG guider (or KSampler) with an empty negative prompt."
            )
        return {NULL_TEXT: states}

    def preserve(self, call: AttentionCall) -> Tensor:
        """Eqs 1-3, for conditional and unconditional rows alike."""
        state: Manipulation = call.state
        normal = state.normal[call.run.step][call.layer.index]
        if normal and not (self.localized and call.run.family.joint):
            return call.own()
        places = self._placed(call)
        if normal:
            return _localized(call, places)
        retained, text = self._retains(call), "source" if self.localized else "own"
        if len(places) == 1:
            return _compose(call, places[0], retained, text)
        out = torch.empty_like(call.q)
        for place in places:
            out[place.rows] = _compose(call, place, retained, text)
        return out

    def _placed(self, call: AttentionCall) -> list[Places]:
        """The masks of this layer's size as indices, found once for each M_t: of all sizes met so far in one copy."""
        state: Manipulation = call.state
        found = state.target.once((call.batch, call.q.device), dict)
        if call.shape not in found:
            state.sizes.setdefault(call.shape)
            sizes = [size for size in state.sizes if size not in found]
            places = [self._places(state.target.mask, call.batch, size) for size in sizes]
            found.update(zip(sizes, savable(lambda: on_device(places, call.q.device)), strict=True))
        return found[call.shape]

    def _places(self, given: Tensor, batch: int, size: tuple[int, int]) -> list[Places]:
        """M_t and what goes with it at a layer's size, as indices on the CPU."""

        def at(mask: Tensor) -> Tensor:
            return for_batch(resize(mask, size, self.resize_rule).flatten(1), batch, "edit mask")

        target, source = at(given), at(self.masks.source)
        foreground = {"target": target, "source": source, "union": target | source}[self.key_mask]
        sides = (target, ~target, at(~self.masks.source), foreground)
        shared = len(self.masks.source) == 1 and len(given) == 1
        return [
            Places(slice(None) if shared else slice(item, None, batch), *(mask[item].nonzero()[:, 0] for mask in sides))
            for item in range(1 if shared else batch)
        ]

    def _retains(self, call: AttentionCall) -> bool:
        started = call.run.step >= Window(self.retain_start).first_in(call.run)
        keeps = self.masks.retain and started
        return keeps and call.layer in layers_from(call.run.family, self.retain_layer, RETAIN_LAYER)

    def extract(self, call: AttentionCall) -> Tensor:
        """Eq 4, for conditional rows: the prompt inside M_t, the null text elsewhere."""
        target: Target = call.state.target
        everywhere = target.once("everywhere", lambda: bool(target.mask.all()))
        if call.extra is None or everywhere or not any(call.conditional):
            return call.own()
        key = ("cross", call.shape, call.batch, call.conditional, call.q.device)
        prompted = target.once(key, lambda: self._prompted(call))
        elsewhere = call.attend(call.q, *call.extra[NULL_TEXT])
        return torch.where(prompted, call.own(), elsewhere)

    def rewritten(self, state: Manipulation, call: AttentionCall, source: Tensor, target: Tensor) -> Tensor:
        """Eq 4: outside M_t no pixel attends to the prompt."""
        if not self.localized:
            return target
        key = ("inside", call.shape, call.batch, target.dtype, target.device)
        inside = state.target.once(key, lambda: self._inside(state.target.mask, call).to(target))
        return target * inside[:, None, :, None]

    def _inside(self, mask: Tensor, call: AttentionCall) -> Tensor:
        """M_t on a layer's image tokens: (B, N) bool."""
        return for_batch(resize(mask, call.shape, self.resize_rule).flatten(1), call.batch, "edit mask")

    def _prompted(self, call: AttentionCall) -> Tensor:
        """Queries (R, N, 1) that read their own row's text: all of unconditional rows, else those inside M_t."""
        # Made on the device of indices that are there: nothing more is copied to it.
        prompted = torch.zeros((*call.q.shape[:2], 1), dtype=torch.bool, device=call.q.device)
        for place in self._placed(call):
            prompted[place.rows].index_fill_(1, place.inside, True)
        for chunk, conditional in enumerate(call.conditional):
            if not conditional:
                prompted[call.rows(chunk)] = True
        return prompted

    def predicted(self, run: Moment, state: Manipulation, denoised: Tensor, x: Tensor, sigma: float) -> Tensor:
        """The end of a step, after which the next one may have another M_t."""
        state.target.step_done(run)
        return denoised

    def finish(self, run: Moment, state: Manipulation, latent: Tensor) -> None:
        """Leave the refined masks, under the latent that the run ended with."""
        if self.masks.refinement is not None and state.target.by_step:
            self.masks.refinement.masks.keep(latent, RefinedRun(state.target.by_step, run.family.cell))

    def shown(self) -> Tensor | None:
        return self.masks.target if self.localized else None

    def follows(self) -> str:
        return "" if self.masks.refinement is None else "Refine Mask"


@dataclass(frozen=True, eq=False)
class Manipulation:
    """CPAM in one run.

    Attributes:
        target: M_t of the moment.
        normal: which layers of which steps keep normal self-attention.
        sizes: of layers met so far, in their order.
    """

    target: Target
    normal: list[list[bool]]
    sizes: dict[tuple[int, int], None] = field(default_factory=dict)


def _look_at_words(call: AttentionCall) -> None:
    call.state.target.look("cross", call)


def _look_at_itself(call: AttentionCall) -> None:
    call.state.target.look("self", call)


def _localized(call: AttentionCall, places: Sequence[Places]) -> Tensor:
    """Normal joint attention, but for the background, which reads the source's text in place of the prompt."""
    out = call.own().clone()
    for place in places:
        q, k, v = (x[place.rows] for x in (call.q, call.k, call.v))
        out[place.rows, place.outside] = _attend(call, q[:, place.outside], k, v, place.rows, "source")
    return out


def _compose(call: AttentionCall, place: Places, retained: bool, text: str = "own") -> Tensor:
    """Eqs 1-3 for rows that share masks.

    The masks act on keys: masked keys are left out instead of being given -inf, and each query is computed
    once, for the side of Eq 3 that it is on. A side without keys (a mask that covers everything) gives way to
    the other one.

    On joint attention `text` says whose text the background reads beside the source's background: the source's makes
    it exactly the source's, and hides the prompt from it as Eq 4 does on UNets.
    """
    rows, q, source = place.rows, call.q[place.rows], call.from_source
    k, v = source.k[rows], source.v[rows]
    everything = not len(place.outside) or not len(place.background)
    inside = slice(None) if everything else place.inside
    if retained and len(place.foreground):
        inner = _attend(call, q[:, inside], k[:, place.foreground], v[:, place.foreground], rows)
    elif everything or not call.plain:
        inner = call.own()[rows][:, inside]
    else:
        inner = _attend(call, q[:, inside], call.k[rows], call.v[rows], rows)
    if everything:
        return inner
    out = torch.empty_like(q)
    out[:, place.inside] = inner
    k, v = k[:, place.background], v[:, place.background]
    out[:, place.outside] = _attend(call, q[:, place.outside], k, v, rows, text)
    return out


def _attend(call: AttentionCall, q: Tensor, k: Tensor, v: Tensor, rows: slice, text: str = "own") -> Tensor:
    """Attention of queries, of which there may be none."""
    return call.attend(q, k, v, rows=rows, text=text) if q.shape[1] else q
