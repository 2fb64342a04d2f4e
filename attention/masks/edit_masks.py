"""EDIT_MASKS: which pixels a source object has, which pixels the edit may change, and how."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .cells import as_mask, grow, selecting
from .refinement import Refinement

TASKS = (
    "replace or recolour",
    "edit, keep the object",
    "change the background",
    "remove the object",
    "add an object",
    "edit a part or region",
)
"""Mask-guidance strategies (CPAM section 3.5 and A.1)."""
_DRAW = "Draw the object in Load Image's mask editor, or connect a segmentation"
REGION_TASKS = TASKS[4:]
"""Tasks whose mask is the region to be altered: it is taken as it is drawn, as source and target mask alike."""


@dataclass(frozen=True, eq=False)
class EditMasks:
    """Masks of an edit at image resolution, (M, H, W) bool on the CPU, M = 1 or one per image.

    Attributes:
        source: M_s, what is edited in the source; what lies outside is kept, and its keys are what the
            background reads.
        target: M_t, where the edit appears; empty for a removal.
        retain: the edited object keeps the source's look.
        changed: where pixels may change, for an exact background.
        refinement: how the target mask follows the drawing; None leaves it as it is.
    """

    source: Tensor
    target: Tensor
    retain: bool
    changed: Tensor
    refinement: Refinement | None = None

    def refined(self, refinement: Refinement) -> EditMasks:
        """The same masks with a target that is refined.

        Raises:
            ValueError: there is no target.
        """
        if not self.target.any():
            raise ValueError(
                "Removing an object has no target mask that could be refined: nothing is drawn by the prompt. Leave "
                "Refine Mask out."
            )
        return replace(self, refinement=refinement)


def edit_masks(mask: Tensor, task: str, dilation: float, invert: bool = False) -> EditMasks:
    """Masks for a task.

    Args:
        mask: (H, W) or (M, H, W), the object (for a new background too: the object to keep; for an added object
            or a part: the region to alter).
        task: one of TASKS.
        dilation: kernel side as a share of the square root of the mask's area (0.1 in the official code). Not used
            for a background (0.001 there, which is none) and by REGION_TASKS.
        invert: the mask selects the opposite.

    Raises:
        ValueError: unknown task, a mask of the wrong shape, or one that selects nothing or everything, as it is or
            grown.
    """
    if task not in TASKS:
        raise ValueError(f"Unknown task {task!r}; choose one of: {', '.join(TASKS)}.")
    chosen = ~as_mask(mask, "mask") if invert else selecting(mask, "mask", _DRAW)
    share = chosen.float().flatten(1).mean(1)
    if bool((share == 0).any()):
        raise ValueError("Switch invert off: the mask selects everything, and inverted it selects nothing.")
    if bool((share == 1).any()):
        raise ValueError(
            "Paint the object only: the mask selects everything, so that there is no background left to keep."
        )
    if task in REGION_TASKS:
        return EditMasks(source=chosen, target=chosen, retain=False, changed=chosen)
    if task == "change the background":
        return EditMasks(source=~chosen, target=~chosen, retain=False, changed=~chosen)
    grown = grow(chosen, dilation)
    if bool(grown.flatten(1).all(1).any()):
        raise ValueError(
            f"Grown by a dilation of {dilation:g}, the mask covers everything, and there is no background left to "
            "keep. Lower dilation, or draw a smaller mask."
        )
    if task == "remove the object":
        # With no target pixels everything attends to background keys only (Eqs 1-3 with M_t empty).
        return EditMasks(source=grown, target=torch.zeros_like(grown), retain=False, changed=grown)
    return EditMasks(source=chosen, target=grown, retain=task == "edit, keep the object", changed=grown)
