"""Other packs' patches on transformers: the host's own nodes where it has them, else the mechanism of the pack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_nag import NAGuidance
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT
from other_packs import Other, attention_override, cache_of_calls, made_by
from torch import Tensor

_SKIPPED = 30.0, 0.0, 1.0, "1", ""
"""Scale, first and last share of the steps, double and single blocks that are skipped."""


def _picture_in_blocks(model: Any) -> Any:
    """The first double block's image stream, with what a reference picture adds to it behind the block."""
    clone = model.clone()

    def block(args: dict[str, Any], extra: dict[str, Callable[..., Any]]) -> dict[str, Any]:
        out = extra["original_block"](args)
        image = out["img"]
        added = torch.randn(1, 1, image.shape[-1], generator=torch.Generator().manual_seed(5)).to(image)
        return {**out, "img": image + added}

    clone.set_model_patch_replace(block, "dit", "double_block", 1)
    return clone


def _block_skipped(model: Any) -> Any:
    """A block that gives back what it was given."""
    clone = model.clone()

    def left_out(args: dict[str, Any], extra: dict[str, Callable[..., Any]]) -> dict[str, Any]:
        return args

    clone.set_model_patch_replace(left_out, "dit", "double_block", 1)
    return clone


def _masked(model: Any) -> Any:
    """The picture's left half reads none of the text, by a mask of attention."""
    clone = model.clone()

    def patch(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> dict[str, Any]:
        mask = torch.zeros(q.shape[2], k.shape[2])
        start, end = given["extra_options"]["img_slice"]
        mask[start : (start + end) // 2, :start] = -1e4
        return {"q": q, "k": k, "v": v, "pe": given["pe"], "attn_mask": mask}

    clone.set_model_attn1_patch(patch)
    return clone


SD3_OTHERS = (
    Other("Skip Layer Guidance", "ComfyUI's SkipLayerGuidanceDiT", made_by(SkipLayerGuidanceDiT, *_SKIPPED)),
    Other("Block patch", "imitated: what PuLID and IP-Adapters of Flux add behind a `dit` block", _picture_in_blocks),
    Other("Block left out", "imitated: a `dit` block patch that does not run the block", _block_skipped),
    Other("Attention override", "imitated: KJNodes' `optimized_attention_override`", attention_override),
    Other("LazyCache", "ComfyUI's", made_by(LazyCacheNode, 1e6, 0.0, 1.0, False), steps=4),
    Other("Cache of whole calls", "imitated: TeaCache's `model_function_wrapper`", cache_of_calls, steps=4),
)
FLUX_OTHERS = (
    *SD3_OTHERS,
    Other("Masked attention", "imitated: regional prompts of Flux, a mask from `attn1_patch`", _masked),
    Other("NAG", "ComfyUI's Normalized Attention Guidance", made_by(NAGuidance, 5.0, 0.5, 1.5)),
    Other("EasyCache", "ComfyUI's", made_by(EasyCacheNode, 1e6, 0.0, 1.0, False), steps=4),
)
"""ComfyUI asks patches of queries, and wrappers of the network, in Flux's blocks and not in SD3's."""
