"""The patches that sit in the UNet's attention layers: they sort rows, capture the source and ask the controls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...host.attention import host_attention
from ...host.families import Layer
from ...host.marks import KEY, PATCHES
from .acts import How, Site
from .asking import Asking, Own
from .features import keep_features
from .roles import Call, Group
from .run import Phase, Run


def additions(patch: Any) -> list[tuple[Callable[..., Tensor], dict[str, Any]]]:
    """What a patch adds to attention, with the settings of each; nothing for patches of another kind.

    The nodes of IPAdapter, InstantID and PuLID share one: it keeps lists `callback` and `kwargs`, computes attention
    and adds what each callback gives.
    """
    callbacks, settings = getattr(patch, "callback", None), getattr(patch, "kwargs", None)
    if not (isinstance(callbacks, list) and isinstance(settings, list)):
        return []
    return list(zip(callbacks, settings, strict=True))


@dataclass(frozen=True, eq=False)
class SiteHook:
    """A replace patch on one attention of one layer, in front of whatever patch was there before.

    The order within a layer is: the patch that was there, then our controls in the order of their nodes, then
    what IPAdapter-like packs add after us. What such a pack has added before is added behind too where a control
    computes the attention anew, which would leave it out.
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
        for callback, kwargs in [*self._behind(extra_options), *self.added]:
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

    def _behind(self, options: dict[str, Any]) -> list[tuple[Callable[..., Tensor], dict[str, Any]]]:
        """What patches add to attention that ours would else leave out, or that would else take our place."""
        later = additions(self._set_later(options))
        return [*(additions(self.previous) if self._renewed(options) else []), *later]

    def _renewed(self, options: dict[str, Any]) -> bool:
        """Whether a control computes this attention anew in the call."""
        call = options.get(KEY)
        if not isinstance(call, Call) or call.run.phase is not Phase.EDIT:
            return False
        return any(act.how is How.REPLACES for _, act in call.run.acting.at(self.site, self.layer.index))

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
        if later is not None and not additions(later):
            tokens = self._own_tokens(options, k)
            return later(q, k[:, :tokens], v[:, :tokens], options)
        run = call.run if isinstance(call, Call) else call
        if isinstance(run, Run):
            run.sites_called.add((self.site, self.layer.index))
        if not isinstance(call, Call):
            return self._before(q, k, v, options, mask)
        tokens, groups = self._own_tokens(options, k), call.groups
        whole = Own(lambda: self._before(q, k[:, :tokens], v[:, :tokens], options, mask), plain=False)
        keep_features(call, self.site, self.layer, q, k, v)
        if not groups:
            return whole()
        if call.sources or len(groups) > 1 or call.run.acting.at(self.site, self.layer.index):
            call.check_rows(len(q), f"{self.site.value}-attention of layer {self.layer.index}")
        if len(groups) == 1 and not call.sources:
            return self._controlled(call, groups[0], q, k, v, options, whole)
        # Packed, or branches: each part's rows are asked for by themselves. What is read of others is there already.
        out, sources = torch.empty_like(q), call.source_rows
        if len(sources) and self.previous is None:
            out[sources] = host_attention(q[sources], k[sources, :tokens], v[sources, :tokens], options)
        elif len(sources):
            out[sources] = whole()[sources]
        for group in groups:
            rows = group.rows
            own = None if self.previous is None else Own(partial(_at, whole, rows), plain=False)
            out[rows] = self._controlled(call, group, q[rows], k[rows], v[rows], options, own)
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
        added_behind = bool(additions(self.previous)) and self._renewed(options)
        if self.previous is not None and not added_behind:
            return self.previous(q, k, v, options)
        return host_attention(q, k, v, options, mask)

    def _controlled(
        self, call: Call, group: Group, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any], own: Own | None
    ) -> Tensor:
        """Ask the controls that act on a group's rows in this layer, each of them standing on the one before it."""
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
        asking = Asking(
            call=call,
            group=group,
            site=self.site,
            layer=self.layer,
            shape=(int(shape[0]), int(shape[1])),
            q=q,
            k=k,
            v=v,
            heads=options["n_heads"],
            attend=lambda a, b, c, mask=None, **_: host_attention(a, b, c, options, mask),
            extra=extra,
        )
        if run.reading is not None and self.site is Site.CROSS:
            run.reading.take(asking.call_of(own))
        return asking.ask(own)()


def _at(whole: Own, rows: Tensor) -> Tensor:
    return whole()[rows]


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
    call.check_rows(len(context), f"cross-attention of layer {layer.index}")
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
