"""The patches that sit in the UNet's attention layers: they sort rows, capture the source and ask the controls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from ...host.attention import host_attention
from ...host.families import Layer
from ...host.marks import KEY, KEY_NEGATIVE, PATCHES, is_row
from .acts import Act, How, Site
from .call import AttentionCall, Features, SourceRows
from .control import Control
from .roles import Call
from .run import Phase, Run

UNCONDITIONAL = ("negative", "empty_negative_prompt")
"""The host's guiders' names of conditionings that stand for the absence of the prompt."""
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
class SiteHook:
    """A replace patch on one attention of one layer, in front of whatever patch was there before.

    The order within a layer is: the patch that was there, then our controls in the order of their nodes, then
    what IPAdapter-like packs add after us.
    """

    site: Site
    layer: Layer
    previous: Any = None
    added: list[tuple[Callable[..., Tensor], dict[str, Any]]] = field(default_factory=list)

    def __deepcopy__(self, memo: dict[int, Any]) -> SiteHook:
        return replace(self, added=list(self.added))

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        extra_options: dict[str, Any],
        mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """The host's replace patch: q (R, N, C), k and v (R, L, C) to (R, N, C)."""
        out = self._attention(q, k, v, extra_options, mask)
        sigma = extra_options.get("sigmas")
        for callback, kwargs in self.added:
            start, end = kwargs.get("sigma_start", float("inf")), kwargs.get("sigma_end", 0.0)
            if sigma is None or end <= float(sigma[0]) <= start:
                tokens = self._own_tokens(extra_options, k)
                out = out + callback(out, q, k[:, :tokens], v[:, :tokens], extra_options, **kwargs)
        return out.to(q.dtype)

    def add(self, callback: Callable[..., Tensor], **kwargs: Any) -> None:
        """Let IPAdapter's nodes put themselves on a layer after us, as they do among themselves."""
        self.added.append((callback, kwargs))

    def to(self, *args: Any, **kwargs: Any) -> SiteHook:
        """Move the patch in front of us, as the host asks of all patches."""
        if hasattr(self.previous, "to"):
            return replace(self, previous=self.previous.to(*args, **kwargs))
        return self

    def models(self) -> list[Any]:
        """Models that the patch in front of us wants loaded."""
        return self.previous.models() if hasattr(self.previous, "models") else []

    def cleanup(self) -> None:
        """Tell the patch in front of us that the run is over."""
        if hasattr(self.previous, "cleanup"):
            self.previous.cleanup()

    def _own_tokens(self, options: dict[str, Any], k: Tensor) -> int:
        """Tokens of the rows' own context, without those that our controls appended."""
        call = options.get(KEY)
        if self.site is Site.CROSS and isinstance(call, Call) and call.run.phase is Phase.EDIT:
            return call.run.cross_tokens.get(self.layer.key, k.shape[1])
        return k.shape[1]  # nothing is appended to the source's own call

    def _attention(
        self, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any], mask: Tensor | None = None
    ) -> Tensor:
        call = options.get(KEY)
        later = self._set_later(options)
        if later is not None:
            tokens = self._own_tokens(options, k)
            return later(q, k[:, :tokens], v[:, :tokens], options)
        run = call.run if isinstance(call, Call) else call
        if isinstance(run, Run):
            run.sites_called.add((self.site, self.layer.index))
        if not isinstance(call, Call):
            return self._before(q, k, v, options, mask)
        tokens = self._own_tokens(options, k)
        source_rows, target_rows = call.source_rows, call.target_rows
        whole = Own(lambda: self._before(q, k[:, :tokens], v[:, :tokens], options, mask), plain=False)
        self._capture(call, q, k, v)
        if len(target_rows) == 0:
            return whole()
        if len(source_rows) == 0:
            return self._controlled(call, q, k, v, options, whole)
        # Packed: the source's rows are ahead of the target's in time, whatever their place in the batch.
        out = torch.empty_like(q)
        if self.previous is None:
            k_source, v_source = k[source_rows, :tokens], v[source_rows, :tokens]
            out[source_rows] = host_attention(q[source_rows], k_source, v_source, options)
            own: Own | None = None
        else:
            out[source_rows] = whole()[source_rows]
            own = Own(lambda: whole()[target_rows], plain=False)
        out[target_rows] = self._controlled(call, q[target_rows], k[target_rows], v[target_rows], options, own)
        return out

    def _set_later(self, options: dict[str, Any]) -> Any:
        """A patch of the whole block that was set after ours, or for one call as PAG does it; None if there is none.

        The host asks for a layer's own patch first, so that one of its block would never be called; what was set last
        has the last word.
        """
        name = "attn1" if self.site is Site.SELF else "attn2"
        found = options.get(PATCHES, {}).get(name, {}).get(self.layer.block)
        before = self.previous
        moved = hasattr(before, "to") and type(found) is type(before)  # the host has moved both to a device
        return None if found is before or moved else found

    def _before(self, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any], mask: Tensor | None = None) -> Tensor:
        if self.previous is not None:
            return self.previous(q, k, v, options)
        return host_attention(q, k, v, options, mask)

    def _capture(self, call: Call, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Keep the source's features, if a control reads them, without the host's repetition of its text."""
        reads = call.run.acting.reads(self.site, self.layer.index) if call.sources else ()
        if not reads:
            return
        captured = call.run.captured.setdefault((self.site, self.layer.index), {})
        for role, length, rows in call.sources:
            text = slice(length or None) if self.site is Site.CROSS else slice(None)
            alone = len(rows) == len(q)
            parts = {"q": (q, slice(None)), "k": (k, text), "v": (v, text)}
            captured[role] = Features(
                **{name: parts[name][0][:, parts[name][1]][slice(None) if alone else rows] for name in reads}
            )

    def _controlled(
        self, call: Call, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any], own: Own | None
    ) -> Tensor:
        """Ask the controls that act on this layer, each of them standing on the one before it."""
        run, tokens = call.run, self._own_tokens(options, k)
        extra = _split_extra(run, self.layer, k, v, tokens) if self.site is Site.CROSS else None
        k, v = k[:, :tokens], v[:, :tokens]
        if own is None or self.previous is None:
            own = Own(lambda: host_attention(q, k, v, options), plain=True)
        shape = options["activations_shape"][-2:]
        if shape[0] * shape[1] != q.shape[1]:
            raise ValueError(
                f"Layer {self.layer.index} has {q.shape[1]} image tokens where its map is {shape[0]}x{shape[1]}: "
                "another patch merges or tiles tokens (Token Merging, HyperTile). Remove it from the edited model."
            )
        call_of = self._calls(call, q, k, v, options, (int(shape[0]), int(shape[1])), extra)
        if run.reading is not None and self.site is Site.CROSS:
            run.reading.take(call_of(own))
        for control, act in run.acting.at(self.site, self.layer.index):
            if act.do is None:
                continue
            if act.how is not How.LOOKS:
                own = Own(partial(act.do, call_of(own, control, act)), plain=False)
            elif run.reading is None:  # a pass that is differentiated is none of the run's own
                act.do(call_of(own, control, act))
        return own()

    def _calls(
        self,
        call: Call,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        options: dict[str, Any],
        shape: tuple[int, int],
        extra: dict[str, tuple[Tensor, Tensor]] | None,
    ) -> Callable[..., AttentionCall]:
        """What acts are handed: the same for all of them, but for what each stands on and reads of the source."""
        conditional = tuple(role not in UNCONDITIONAL and not is_row(role) for role in call.target_roles)
        captured = call.run.captured.get((self.site, self.layer.index))

        @cache
        def source(own_half: bool) -> SourceRows | None:
            if not captured or KEY not in captured:
                return None
            prompt = captured[KEY]
            other = captured.get(KEY_NEGATIVE, prompt) if own_half else prompt
            return SourceRows([prompt if chunk else other for chunk in conditional], call.batch, q.dtype)

        def call_of(own: Own, control: Control | None = None, act: Act = ANY) -> AttentionCall:
            return AttentionCall(
                run=call.run,
                layer=self.layer,
                shape=shape,
                q=q,
                k=k,
                v=v,
                conditional=conditional,
                batch=call.batch,
                own=own,
                attend=lambda a, b, c, mask=None: host_attention(a, b, c, options, mask),
                source=source(act.own_half) if act.reads else None,
                state=None if control is None else call.run.states.get(control),
                heads=options["n_heads"],
                lengths=tuple(n or k.shape[1] for n in call.target_lengths),
                extra=extra,
                guiding=call.run.reading is not None,
                rewrite=call.run.rewritten,
            )

        return call_of


def _split_extra(run: Run, layer: Layer, k: Tensor, v: Tensor, tokens: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Keys and values of the contexts that `append_contexts` put behind the rows' own."""
    parts, at = {}, tokens
    for name, context in _contexts(run, layer, k).items():
        end = at + context.shape[1]
        parts[name] = (k[:, at:end], v[:, at:end])
        at = end
    if at != k.shape[1]:
        raise ValueError(
            f"Cross-attention of layer {layer.index} has {k.shape[1]} text tokens where {at} were expected: another "
            "patch changes the text after this pack. Put its node before the edit nodes."
        )
    return parts


def _contexts(run: Run, layer: Layer, like: Tensor) -> dict[str, Tensor]:
    """The further texts that acts ask for in a layer, on the device and in the precision of `like`.

    Each text is brought there once, and not by every layer: again only when another one stands in its place, as a
    null text does at every noise level.
    """
    result: dict[str, Tensor] = {}
    for control, act in run.acting.at(Site.CROSS, layer.index):
        if act.contexts is not None:
            for name, states in act.contexts(run, run.states.get(control)).items():
                result[name] = run.brought(name, states, like)
    return result


def append_contexts(
    n: Tensor, context: Tensor, value: Tensor, extra_options: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """attn2 patch: put the contexts that controls ask for behind each row's own, so that the layer projects them.

    Queries then read one context or the other by position (CPAM Eq 4); no second projection is written here.
    """
    call = extra_options.get(KEY)
    if not isinstance(call, Call) or call.run.phase is not Phase.EDIT:
        return n, context, value
    run = call.run
    key = (*extra_options["block"], extra_options["block_index"])
    layer = next((la for la in run.family.layers if la.key == key), None)
    if layer is None:
        return n, context, value
    run.cross_tokens[key] = context.shape[1]
    extra = []
    for states in _contexts(run, layer, context).values():
        if states.shape[0] not in (1, call.batch):
            raise ValueError(
                f"A prompt of the edit comes as a batch of {states.shape[0]}, but the sampler runs {call.batch} images."
            )
        if states.shape[-1] != context.shape[-1]:
            raise ValueError(
                f"A prompt of the edit has {states.shape[-1]} numbers per token, but this model reads "
                f"{context.shape[-1]}. Encode it with the CLIP of the model that you edit with."
            )
        rows = states.expand(call.batch, -1, -1).repeat(len(call.roles), 1, 1)
        extra.append(rows)
    return n, torch.cat([context, *extra], dim=1), torch.cat([value, *extra], dim=1)
