"""The pack's names in the host's dictionaries: transformer options, wrappers and conditionings."""

from __future__ import annotations

from typing import Any

KEY = "attention_edit"
"""Our name in the host's dictionaries: transformer options, wrappers and conditionings."""
KEY_NEGATIVE = f"{KEY}_negative"
"""The source with the negative prompt, where a control reads both halves of guidance."""
SOURCES = (KEY, KEY_NEGATIVE)
NULL_KEY = "attention_edit_null"
"""The name of the inversion's null text among the host's conditionings."""
NULLED = ("negative", "empty_negative_prompt", KEY_NEGATIVE)
"""Conditionings in whose place the inversion's null text stands."""
PATCHES = f"{KEY}_patches_replace"
"""Transformer option: the replace patches of the call of the moment, which the host keeps from the patches itself."""
_ROW = f"{KEY} row "


def row_key(name: str) -> str:
    """The key of a further negative prompt of the edit, with rows of its own."""
    return f"{_ROW}{name}"


def is_row(key: str) -> bool:
    """Whether a key is that of a further negative prompt."""
    return key.startswith(_ROW)


def prompt_key(part: str) -> str:
    """The key of a prompt that a part of a branch has instead of the sampler's."""
    return f"{KEY} prompt of {part}"


STATES = f"{KEY}_states"
"""Option of a CONDITIONING: its text states for every step, (S - 1, 1 or B, L, C) from clean to noisy."""


def edits_on(model: Any) -> str:
    """What the pack has put on a host MODEL: "none", "passive" (it only looks) or "edits"."""
    plan = model.model_options.get("transformer_options", {}).get(KEY)
    if plan is None or not (plan.controls or plan.edits):
        return "none"
    return "edits" if plan.edits else "passive"


def check_unedited(model: Any, passive: bool = False, place: str = "the inversion") -> None:
    """Raise ValueError if a host MODEL carries edits, which would become part of what is measured.

    Args:
        passive: whether controls that only record may be on it.
        place: what the model is connected to, for the error.
    """
    if edits_on(model) not in ("none", "passive" if passive else "none"):
        raise ValueError(
            f"The model connected to {place} already carries edits. Connect the model from before the edit "
            "nodes (with its LoRAs), and give the inversion to the edit nodes."
        )
