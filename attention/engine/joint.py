"""Joint attention of transformers: text and image are one sequence, of which controls are handed the image's part.

There is one site for all families, the host's `optimized_attention_override`, made anew for each call of the model and
chained to the override that is there. It sees queries, keys and values with their positions in them. Image queries
are the controls'; the text's keep their own attention, since to replace them would change what the text says (Shin et
al. 2025, ConsistEdit).

The attention of an image query is a sum of two shares, what it reads of the prompt's words and what it reads of all
else, both by the weights of one softmax. Acts on self-attention are handed the whole. Where an act on cross-attention
changes the words' share, it is handed that, and acts on self-attention the other share; the sum of both is the
attention.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import torch
from torch import Tensor

from ...host.families import Family, Layer
from ...host.marks import KEY
from ...host.remarks import Kind
from ...host.transformers import Turn, image_pads
from .acts import How, Site
from .asking import Asking, Own
from .call import Attend, Beside
from .control import Control
from .roles import Call
from .run import Phase, Run
from .sequence import Sequence, apart, by_head, whole_attention, words_alone
from .sides import OTHER_SIDE, TEXT_SIDE, Sides, keep_sides

OVERRIDE = "optimized_attention_override"
"""The host's name of what is asked in the place of attention."""


def check_joint(control: Control, family: Family) -> None:
    """Refuse a control that does not work on joint attention.

    Raises:
        ValueError: it does not.
    """
    if not control.on_joint:
        raise ValueError(
            "Use MasaCtrl, FPE, CPAM, Prompt-to-Prompt, Local Blend, Proximal Guidance or Exact Background: "
            f"{control.name} does not work on transformers such as {family.name} yet. Or connect an SD1.x, SD2.x or "
            "SDXL checkpoint."
        )


def with_site(
    run: Run, network: Any, x: Tensor, options: dict[str, Any], conditions: Mapping[str, Any]
) -> dict[str, Any]:
    """Transformer options of one call of the model with x (R, C, h, w), with the site in them.

    Args:
        network: the host's transformer. conditions: what it is called with beside text and noise level.

    Raises:
        ValueError: reference pictures, where the host does not tell how many tokens they take.
    """
    transformer = run.family.transformer
    if transformer is None:
        return options
    if transformer.behind_text and conditions.get("ref_latents"):
        raise ValueError(
            f"Remove the reference pictures from the prompts (ReferenceLatent and the like): edits on "
            f"{run.family.name} cannot tell their tokens from the prompt's."
        )
    patch = run.family.layers[0].scale
    shape = (ceil(x.shape[-2] / patch), ceil(x.shape[-1] / patch))
    pads = image_pads(network, shape[0] * shape[1])
    site = JointSite(
        run, shape, pads, transformer.turn_of(network), bool(conditions.get("ref_latents")), options.get(OVERRIDE)
    )
    found = {**options, OVERRIDE: site}
    return found if transformer.numbered else _numbered(run.family, found)


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
class JointSite:
    """The host's override of attention for one call of the model.

    Attributes:
        shape: (h, w) of the image's tokens. pads: tokens that the network puts behind them. turn: how it turns
            queries and keys by the prompt's length, if it does. references: whether pictures beside the image are in
            the sequence too. previous: the override that was there.
    """

    run: Run
    shape: tuple[int, int]
    pads: int = 0
    turn: Turn | None = None
    references: bool = False
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
        first = length - tokens - self.pads - self._behind(options)
        if layer is None or first <= 0:  # refiners, and attention of the image alone (SD3.5 medium)
            return attention(q, k, v, heads, *args, **kwargs)
        places = [(site, layer.index) for site in (Site.SELF, Site.CROSS)]
        self.run.sites_called.update(places)
        call = options.get(KEY)
        acting = any(self.run.acting.at(*place) for place in places) and self.run.phase is not Phase.IDLE
        if not isinstance(call, Call) or not acting:
            return attention(q, k, v, heads, *args, **kwargs)
        if (args[0] if args else kwargs.get("mask")) is not None:
            raise ValueError(
                f"Remove the node that masks attention (regional prompts and the like) from the edited model: block "
                f"{block[0]} {block[1]} has a mask of its own, and this edit computes its attention anew."
            )
        beside = {n: o for n, o in kwargs.items() if n not in ("mask", "skip_reshape", "skip_output_reshape")}
        parts = (q, k, v) if kwargs.get("skip_reshape") else (by_head(q, heads), by_head(k, heads), by_head(v, heads))
        whole = partial(whole_attention, attention, heads, beside)
        found = self._edited(call, layer, Sequence(*parts, first, first + tokens, self.pads, whole))
        if found is None:
            return attention(q, k, v, heads, *args, **kwargs)
        return apart(found, heads) if kwargs.get("skip_output_reshape") else found

    def _behind(self, options: dict[str, Any]) -> int:
        """Tokens of reference pictures behind the image's.

        Raises:
            ValueError: a host that does not tell (before 0.24).
        """
        counted = options.get("reference_image_num_tokens")
        if self.references and counted is None:
            raise ValueError(
                "Update ComfyUI to 0.24 or newer, or remove the reference pictures from the prompts (ReferenceLatent "
                "and the like): this one does not tell edits how many tokens they take."
            )
        return sum(counted or [])

    def _edited(self, call: Call, layer: Layer, sequence: Sequence) -> Tensor | None:
        """The call's attention (R, L + N + M, C), the source kept and the controls asked; None if it is stock."""
        keep_sides(call, layer, sequence, self._fills_ahead)
        group = call.own
        if group is None:
            return None
        target = sequence.rows(group.rows) if len(call.source_rows) else sequence
        sides = Sides(call, group, layer, target, self.turn, self._fills_ahead)
        if not any(self._changed(sides, site) for site in (Site.SELF, Site.CROSS)):
            self._asked(sides)
            return None
        controlled = self._controlled(sides)
        if not len(call.source_rows):
            return controlled
        source = sequence.rows(call.source_rows)
        out = controlled.new_empty(len(sequence.q), *controlled.shape[1:])
        out[call.source_rows] = source.whole(source.q, source.k, source.v)
        out[group.rows] = controlled
        return out

    def _changed(self, sides: Sides, site: Site) -> bool:
        """Whether an act of a site does more than look."""
        acts = self.run.acting.at(site, sides.layer.index, sides.group.part)
        return any(act.how is not How.LOOKS for _, act in acts)

    def _controlled(self, sides: Sides) -> Tensor:
        """The target's rows: the image's as the controls leave them, the others with their own attention."""
        sequence = sides.sequence
        first, end = sequence.first, sequence.end
        self._check_pads(sides.layer, first)
        others = torch.cat([sequence.q[:, :, :first], sequence.q[:, :, end:]], 2)
        beside = sequence.whole(others, sequence.k, sequence.v)
        out = self._asked(sides)()
        return torch.cat([beside[:, :first], out.to(beside), beside[:, first:]], 1)

    def _asked(self, sides: Sides) -> Callable[[], Tensor]:
        """What the controls make of image queries (R, N, C): the words' share and the other one, or both in one."""
        sequence = sides.sequence
        if not self._changed(sides, Site.CROSS):
            share = self._image(sides, sides.text).ask(self._own(sequence, sequence.v))
            if self._changed(sides, Site.SELF):
                share()  # before anything looks at the words, as in a UNet's layer
            if self.run.acting.at(Site.CROSS, sides.layer.index, sides.group.part):
                self._words(sides).ask(share)
            return share
        words = words_alone(sequence.v, sides.words)
        share = self._image(sides, sides.text_without_words).ask(self._own(sequence, sequence.v - words))()
        of_words = self._words(sides).ask(self._own(sequence, words))()
        return lambda: share + of_words

    def _image(self, sides: Sides, texts: Callable[[str], tuple[Tensor, Tensor]]) -> Asking:
        """What acts on self-attention are asked with: the image, with some keys and values of the text beside it."""
        sequence = sides.sequence
        attend, beside = partial(sequence.attend, texts), partial(sequence.beside_image, sides.text)
        return self._asking(sides, Site.SELF, sequence.image[1:], attend, beside)

    def _words(self, sides: Sides) -> Asking:
        """What acts on cross-attention are asked with: the text, with the keys of all else beside the words'."""
        sequence = sides.sequence
        attend, beside = partial(sequence.attend_words, sides.others), partial(sequence.beside_text, sides.others)
        return self._asking(sides, Site.CROSS, sequence.text, attend, beside)

    def _own(self, sequence: Sequence, values: Tensor) -> Own:
        """Attention of the image's queries to all keys, with some values (R, H, n, d)."""
        image = sequence.q[:, :, sequence.first : sequence.end]
        return Own(lambda: sequence.whole(image, sequence.k, values), plain=True)

    def _asking(self, sides: Sides, site: Site, kv: tuple[Tensor, Tensor], attend: Attend, beside: Beside) -> Asking:
        """What acts of a site are asked with: queries of the image, keys and values of it or of the text."""
        return Asking(
            call=sides.call,
            group=sides.group,
            site=site,
            layer=sides.layer,
            shape=self.shape,
            q=sides.sequence.image[0],
            k=kv[0],
            v=kv[1],
            heads=sides.sequence.q.shape[1],
            attend=attend,
            beside=beside,
            fitted=sides.at_home,
            fills_ahead=sides.fills_ahead,
        )

    @property
    def _fills_ahead(self) -> bool:
        transformer = self.run.family.transformer
        return transformer is not None and transformer.fills_ahead

    def _check_pads(self, layer: Layer, ahead: int) -> None:
        """Say that pads, whose position is fixed, lie elsewhere as seen from the source's image."""
        kept = [self.run.captured.get((place, layer.index), {}) for place in (TEXT_SIDE, OTHER_SIDE)]
        if self.pads and any(features.ahead != ahead for of in kept for features in of.values()):
            self.run.remarks.add(
                Kind.DOUBTFUL,
                f"Give source and target prompts about as many words, or the picture sides that 128 divides: at "
                f"{self.shape[0]} x {self.shape[1]} tokens {self.run.family.name} sees its image differently under "
                "prompts of other lengths, and the edit keeps the source less well.",
            )
