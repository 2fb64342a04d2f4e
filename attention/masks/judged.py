"""What of masks, and of the prompts beside them, is likely to disappoint."""

from __future__ import annotations

from torch import Tensor

from ...host.conditioning import encoded_alike
from ...host.remarks import Kind
from ..engine.moment import Moment


def judge_mask(run: Moment, mask: Tensor, name: str) -> None:
    """Remark on a mask (M, H, W) bool that selects something, but less than one cell of the latent.

    Args:
        name: of the method that goes by the mask.
    """
    (height, width), (h, w) = mask.shape[-2:], run.size
    smallest = min(int(item.count_nonzero()) for item in mask)
    if 0 < smallest * h * w < height * width:
        run.remarks.add(
            Kind.DOUBTFUL,
            f"Paint a larger mask: that of {name} selects {smallest} pixels, less than one cell of the latent "
            f"({height // h}x{width // w} pixels of the mask), in which nothing can be drawn.",
        )


def judge_empty_prompts(run: Moment, name: str) -> None:
    """Remark on a negative prompt of several parts, or other than the inversion's, where both are to be empty.

    Args:
        name: of the method, which shows the negative prompt to what is kept of the photograph.
    """
    texts = [
        cond["cross_attn"] for cond in run.guider.conds.get("negative") or [] if cond.get("cross_attn") is not None
    ]
    if len(texts) > 1:
        run.remarks.add(
            Kind.IGNORED,
            f"Connect one plain negative prompt: of its parts {name} shows the first to the kept pixels.",
        )
    if run.inversion is not None and texts and not encoded_alike(run.inversion.conditioning[0][0], texts[0]):
        run.remarks.add(
            Kind.DOUBTFUL,
            f"Leave the source prompt of the inversion and the negative prompt empty for {name}: here they differ, so "
            "at least one of them is not.",
        )
