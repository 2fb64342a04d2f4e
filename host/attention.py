"""The attention function that the user's host is set to."""

from __future__ import annotations

from typing import Any

from comfy.ldm.modules import attention
from torch import Tensor


def host_attention(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any], mask: Tensor | None = None) -> Tensor:
    """The attention that the user's host is set to, with other packs' overrides.

    It is looked up at each call, since packs put another function in its place after it was imported.
    """
    return attention.optimized_attention(
        q,
        k,
        v,
        options["n_heads"],
        mask=mask,
        attn_precision=options.get("attn_precision"),
        transformer_options=options,
    )
