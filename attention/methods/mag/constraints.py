"""MAG-Edit's constraints on cross-attention maps (section 3.2), as pure functions.

A map is (B, H, N, L): for each image and head, how much each of N image tokens attends to each of L text tokens.
It need not sum to one over L: Prompt-to-Prompt mixes columns of two softmaxes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...maps.probabilities import picked

Word = Sequence[int]
"""Positions in the text of one word's tokens."""
BALANCE = 3.0
"""Eq 2's lambda."""


def token_ratio(attention: Tensor, mask: Tensor, word: Word) -> Tensor:
    """Eq 1's ratio: the word's share of all attention, averaged over the mask.

    The paper's denominator has the word and the common tokens of the source's map; the released code, and this,
    all columns of the map that the layer uses.

    Args:
        attention: (B, H, N, L), non-negative.
        mask: (B or 1, N) bool, not empty.
        word: positions of the word's tokens.

    Returns:
        (B, H) in 0..1.
    """
    total = attention.sum(-1).clamp_min(torch.finfo(attention.dtype).tiny)
    share = picked(attention, word).mean(-1) / total
    inside = mask[:, None].to(share)
    return (share * inside).sum(-1) / inside.sum(-1)


def spatial_ratio(attention: Tensor, mask: Tensor, word: Word) -> Tensor:
    """Eq 2's ratio: how much of the word's attention lies inside the mask.

    Args and result as `token_ratio`; the mask may be empty, which gives 0.
    """
    weight = picked(attention, word).sum(-1)
    total = weight.sum(-1).clamp_min(torch.finfo(weight.dtype).tiny)
    return (weight * mask[:, None].to(weight)).sum(-1) / total


def token_loss(ratio: Tensor) -> Tensor:
    """Eq 1: (1 - r)^2 for each ratio in 0..1; in 0..1."""
    return (1 - ratio).square()


def spatial_loss(ratio: Tensor, balance: float = BALANCE) -> Tensor:
    """Eq 2: what lies outside the mask, weighted, less what lies inside: lambda (1 - r) - r; in -1..lambda.

    The paper's braces leave open which of two branches the inner term reads; the released helper computes 3 - 4 r
    from the edit's map alone.
    """
    return balance * (1 - ratio) - ratio


@dataclass(frozen=True)
class Constraint:
    """What is asked of the maps of a word.

    Attributes:
        ratio: of (map (B, H, N, L), mask (B or 1, N), word) to (B, H) in 0..1; 1 is best.
        loss: of ratios, element by element.
    """

    name: str
    ratio: Callable[[Tensor, Tensor, Word], Tensor]
    loss: Callable[[Tensor], Tensor]


TOKEN = Constraint("token ratio", token_ratio, token_loss)
SPATIAL = Constraint("spatial ratio", spatial_ratio, spatial_loss)
CONSTRAINTS = {constraint.name: constraint for constraint in (TOKEN, SPATIAL)}


def evaluate(
    constraint: Constraint, maps: Sequence[Tensor], masks: Sequence[Tensor], words: Sequence[Word]
) -> tuple[Tensor, Tensor]:
    """A constraint over several maps and words: means over heads, then over maps and words.

    Args:
        maps: one (B, H, N, L) per layer; layers may differ in H and N.
        masks: one (B or 1, N) bool per layer.
        words: at least one.

    Returns:
        loss (B,) and ratio (B,), both differentiable with respect to the maps.

    Raises:
        ValueError: no maps or no words.
    """
    if not maps or not words:
        raise ValueError(f"A constraint needs maps and words; it was given {len(maps)} maps and {len(words)} words.")
    ratios = [constraint.ratio(a, m, word) for a, m in zip(maps, masks, strict=True) for word in words]
    losses = torch.stack([constraint.loss(ratio).mean(1) for ratio in ratios])
    return losses.mean(0), torch.stack([ratio.mean(1) for ratio in ratios]).mean(0)


def normalised(weights: Sequence[float]) -> list[float]:
    """Eq 5's weights, which sum to one.

    Raises:
        ValueError: a negative weight, or none above 0.
    """
    total = sum(weights)
    if total <= 0 or min(weights) < 0:
        raise ValueError(f"Weights of guided words must not be negative, and one must be above 0; got {weights}.")
    return [weight / total for weight in weights]
