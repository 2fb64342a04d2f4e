"""Joint attention of transformers: text and image are one sequence, of which controls are handed the image's part.

There is one site for all families, the host's `optimized_attention_override`, made anew for each call of the model and
chained to the override that is there. It sees queries, keys and values with their positions in them. Image queries
are the controls'; the text's keep their own attention, since to replace them would change what the text says (Shin et
al. 2025, ConsistEdit).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...host.families import Family, Layer
from ...host.marks import KEY
from .acts import Site
from .asking import Asking, Own
from .call import Features, SourceRows, source_missing
from .control import Control
from .roles import Call, Group
from .run import Phase, Run

OVERRIDE = "optimized_attention_override"
"""The host's name of what is asked in the place of attention."""
_TEXT = "text"
"""The place of the source's text keys and values, beside that of its image."""


def check_joint(control: Control, family: Family) -> None:
    """Refuse a control that does not work on joint attention.

    Raises:
        ValueError: it does not, or not with these settings.
    """
    others = [act for act in control.acts_on(family) if act.at is not Site.SELF] if control.on_joint else []
    if control.on_joint and not others:
        return
    what = " with masks from words or from attention maps" if control.on_joint else ""
    raise ValueError(
        f"Use MasaCtrl, FPE, CPAM or Exact Background with masks of your own: {control.name}{what} does not work on "
        f"transformers such as {family.name} yet. Or connect an SD1.x, SD2.x or SDXL checkpoint."
    )


def with_site(run: Run, x: Tensor, options: dict[str, Any]) -> dict[str, Any]:
    """Transformer options of one call of the model with x (R, C, h, w), with the site in them."""
    transformer = run.family.transformer
    patch = run.family.layers[0].scale
    shape = (ceil(x.shape[-2] / patch), ceil(x.shape[-1] / patch))
    site = JointSite(run, shape, options.get(OVERRIDE))
    found = {**options, OVERRIDE: site}
    return found if transformer is None or transformer.numbered else _numbered(run.family, found)


def _numbered(family: Family, options: dict[str, Any]) -> dict[str, Any]:
    """Options by which each block says its number, where the host does not tell it (SD3)."""
    replaced = options.get("patches_replace", {})
    there = replaced.get("dit", {})
    own = {_slot(layer): partial(_with_number, layer.block, there.get(_slot(layer))) for layer in family.layers}
    return {**options, "patches_replace": {**replaced, "dit": {**there, **own}}}


def _slot(layer: Layer) -> tuple[str, int]:
    """The host's slot for a block's replacement."""
    return f"{layer.block[0]}_block", layer.block[1]


def _with_number(
    block: tuple[str, int],
    previous: Callable[..., Any] | None,
    args: dict[str, Any],
    extra: dict[str, Callable[..., Any]],
) -> Any:
    """The host's block replacement: the patch that is there, or the block, with its number in the options."""
    numbered = {**args["transformer_options"], "block_type": block[0], "block_index": block[1]}
    given = {**args, "transformer_options": numbered}
    return extra["original_block"](given) if previous is None else previous(given, extra)


@dataclass(frozen=True, eq=False)
class Sequence:
    """The parts of one joint attention, heads apart: q, k, v (R, H, L + N + M, d), text, image, and what is behind it.

    Attributes:
        first, end: where the image's N tokens begin and end. whole: the host's attention on any (R, H, n, d).
    """

    q: Tensor
    k: Tensor
    v: Tensor
    first: int
    end: int
    whole: Callable[..., Tensor]

    def rows(self, rows: Any) -> Sequence:
        """Some of its rows."""
        return Sequence(self.q[rows], self.k[rows], self.v[rows], self.first, self.end, self.whole)

    @property
    def image(self) -> tuple[Tensor, Tensor, Tensor]:
        """The image's part of q, k and v, heads side by side."""
        q, k, v = (_beside(x[:, :, self.first : self.end]) for x in (self.q, self.k, self.v))
        return q, k, v

    def attend(
        self,
        texts: Callable[[str], tuple[Tensor, Tensor]],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None = None,
        *,
        rows: Any = slice(None),
        text: str = "own",
    ) -> Tensor:
        """`Attend` of image queries: the text's keys and values stand before the image's, references behind them."""
        heads = self.q.shape[1]
        q, k, v = (_apart(x, heads) for x in (q, k, v))
        text_k, text_v = (x[rows] for x in texts(text))
        behind_k, behind_v = (x[rows, :, self.end :] for x in (self.k, self.v))
        if mask is not None:
            mask = F.pad(mask, (text_k.shape[2], behind_k.shape[2]))
        return self.whole(q, torch.cat([text_k, k, behind_k], 2), torch.cat([text_v, v, behind_v], 2), mask)


def _whole(
    attention: Any, heads: int, kwargs: dict[str, Any], q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None
) -> Tensor:
    """The host's attention of q (R, H, n, d) to k and v (R, H, m, d): (R, n, H d); a mask (R, n, m) is added."""
    mask = None if mask is None else mask[:, None]
    out: Tensor = attention(q, k, v, heads, mask=mask, skip_reshape=True, **kwargs)
    return out


def _by_head(x: Tensor, heads: int) -> Tensor:
    """(R, N, H d) or (R, N, H, d), as SD3 hands either, to (R, H, N, d)."""
    return (x if x.ndim == 4 else x.unflatten(-1, (heads, -1))).transpose(1, 2)


def _beside(x: Tensor) -> Tensor:
    """(R, H, N, d) to (R, N, H d)."""
    return x.transpose(1, 2).flatten(2)


def _apart(x: Tensor, heads: int) -> Tensor:
    """(R, N, H d) to (R, H, N, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


@dataclass(frozen=True, eq=False)
class JointSite:
    """The host's override of attention for one call of the model.

    Attributes:
        shape: (h, w) of the image's tokens. previous: the override that was there.
    """

    run: Run
    shape: tuple[int, int]
    previous: Any = None

    def __deepcopy__(self, memo: dict[int, Any]) -> JointSite:
        return self

    def __call__(self, func: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Tensor:
        """The host's override: attention of q, k and v as the block lays them out."""
        options = kwargs.get("transformer_options") or {}
        attention = func if self.previous is None else partial(self.previous, func)
        block = (options.get("block_type", "double"), options.get("block_index"))
        layer = next((la for la in self.run.family.layers if la.block == block), None)
        tokens = self.shape[0] * self.shape[1]
        length = q.shape[2] if kwargs.get("skip_reshape") else q.shape[1]
        first = length - tokens - sum(options.get("reference_image_num_tokens", []))
        if layer is None or first <= 0:  # refiners, and attention of the image alone (SD3.5 medium)
            return attention(q, k, v, heads, *args, **kwargs)
        self.run.sites_called.add((Site.SELF, layer.index))
        call = options.get(KEY)
        place = (Site.SELF, layer.index)
        acting = bool(self.run.acting.at(*place)) and self.run.phase is not Phase.IDLE
        if not isinstance(call, Call) or not acting:
            return attention(q, k, v, heads, *args, **kwargs)
        if (args[0] if args else kwargs.get("mask")) is not None:
            raise ValueError(
                f"Remove the node that masks attention (regional prompts and the like) from the edited model: block "
                f"{block[0]} {block[1]} has a mask of its own, and this edit computes its attention anew."
            )
        beside = {n: o for n, o in kwargs.items() if n not in ("mask", "skip_reshape", "skip_output_reshape")}
        parts = (
            (q, k, v) if kwargs.get("skip_reshape") else (_by_head(q, heads), _by_head(k, heads), _by_head(v, heads))
        )
        whole = partial(_whole, attention, heads, beside)
        found = self._edited(call, layer, Sequence(*parts, first, first + tokens, whole))
        if found is None:
            return attention(q, k, v, heads, *args, **kwargs)
        return _apart(found, heads) if kwargs.get("skip_output_reshape") else found

    def _edited(self, call: Call, layer: Layer, sequence: Sequence) -> Tensor | None:
        """The call's attention (R, L + N + M, C), the source kept and the controls asked; None if it is stock."""
        self._capture(call, layer, sequence)
        group = call.own
        if group is None:
            return None
        if not len(call.source_rows):
            return self._controlled(call, group, layer, sequence)
        source, target = sequence.rows(call.source_rows), sequence.rows(group.rows)
        controlled = self._controlled(call, group, layer, target)
        out = controlled.new_empty(len(sequence.q), *controlled.shape[1:])
        out[call.source_rows] = source.whole(source.q, source.k, source.v)
        out[group.rows] = controlled
        return out

    def _capture(self, call: Call, layer: Layer, sequence: Sequence) -> None:
        """Keep the source's image features that a control reads, and the keys and values of its text."""
        reads = self.run.acting.reads(Site.SELF, layer.index) if call.sources else ()
        for role, _, rows in call.sources if reads else ():
            image, kept = dict(zip("qkv", sequence.rows(rows).image, strict=True)), self.run.captured
            kept.setdefault((Site.SELF, layer.index), {})[role] = Features(**{n: image[n] for n in reads})
            k, v = (_beside(x[rows, :, : sequence.first]) for x in (sequence.k, sequence.v))
            kept.setdefault((_TEXT, layer.index), {})[role] = Features(k=k, v=v)

    def _controlled(self, call: Call, group: Group, layer: Layer, sequence: Sequence) -> Tensor:
        """The target's rows: the image's as the controls leave them, the others with their own attention."""
        (q, k, v), first, end = sequence.image, sequence.first, sequence.end
        asking = Asking(
            call=call,
            group=group,
            site=Site.SELF,
            layer=layer,
            shape=self.shape,
            q=q,
            k=k,
            v=v,
            heads=sequence.q.shape[1],
            attend=partial(sequence.attend, partial(self._text, call, group, layer, sequence)),
        )
        own = Own(lambda: sequence.whole(sequence.q[:, :, first:end], sequence.k, sequence.v), plain=True)
        others = torch.cat([sequence.q[:, :, :first], sequence.q[:, :, end:]], 2)
        beside = sequence.whole(others, sequence.k, sequence.v)
        return torch.cat([beside[:, :first], asking.ask(own)().to(beside), beside[:, first:]], 1)

    def _text(self, call: Call, group: Group, layer: Layer, sequence: Sequence, whose: str) -> tuple[Tensor, Tensor]:
        """Keys and values (R, H, L, d) of the target's "own" text, or of the "source"'s for all of its rows."""
        if whose == "own":
            return sequence.k[:, :, : sequence.first], sequence.v[:, :, : sequence.first]
        captured = self.run.captured.get((_TEXT, layer.index), {})
        if KEY not in captured:
            raise source_missing(self.run, f"block {layer.block[0]} {layer.block[1]}")
        rows = SourceRows([captured[KEY]] * len(group.roles), call.batch, sequence.k.dtype)
        heads = sequence.q.shape[1]
        return _apart(rows.k, heads), _apart(rows.v, heads)
