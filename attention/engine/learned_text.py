"""Prompts with learned words in a sampler run: in every step their states are those of that step."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...host.conditioning import at_step
from .moment import Moment


def with_learned(run: Moment, conds: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Conditionings of a call with the present step's text states in the place of those for all steps.

    It holds for every prompt that carries such states, the source's as well as the target's; the host then builds
    their rows as ever. The states come to the device once per noise level.

    Raises:
        ValueError: a prompt that learned its words from another inversion.
    """
    if not conds or run.inversion is None:
        return conds

    def moved(cond: dict[str, Any], states: Tensor) -> Tensor:
        own = cond["model_conds"]["c_crossattn"].cond
        return run.now(("learned text", cond.get("uuid"), own.dtype, own.device), lambda: states.to(own))

    return at_step(conds, run.inversion.pair(run.sigma), moved)
