"""Embeddings of a prompt's tokens that were learned for every step of an inversion.

They lie in the source prompt's CONDITIONING, as tensors among its options beside its states for every step (`STATES`),
so that whatever carries or keeps a conditioning carries and keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..host.conditioning import Conditioning
from ..host.marks import KEY, STATES

TOKEN_KEYS, LEARNED_PLACES = f"{KEY}_tokens", f"{KEY}_positions"
LEARNED_VECTORS = tuple(f"{KEY}_vectors_{encoder}" for encoder in ("l", "g", "h"))
"""By the host's names of the text encoders."""
LEARNED = (STATES, TOKEN_KEYS, LEARNED_PLACES, *LEARNED_VECTORS)
"""Options of a CONDITIONING in which a `LearnedText` lies."""
_PREFIX = f"{KEY}_vectors_"


@dataclass(frozen=True, eq=False)
class LearnedText:
    """What was learned.

    Attributes:
        states: (S - 1, B, L, C) float32 on the CPU, the prompt's text states for every step, from clean to noisy.
        tokens: L, what stands at each place of the prompt, as `words.prompt.Token.key`.
        positions: P places whose embeddings were learned.
        vectors: by the host's name of the text encoder, (S - 1, B, P, C) float32 on the CPU.
    """

    states: Tensor
    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    vectors: Mapping[str, Tensor]

    def put_on(self, conditioning: Conditioning) -> Conditioning:
        """The prompt's conditioning with all of this among its options."""
        (states, options), *_ = conditioning
        mine: dict[str, Any] = {
            STATES: self.states,
            TOKEN_KEYS: torch.tensor(self.tokens),
            LEARNED_PLACES: torch.tensor(self.positions),
        }
        mine |= {f"{_PREFIX}{name}": value for name, value in self.vectors.items()}
        return [[states, {**options, **mine}]]


def learned_text(conditioning: Conditioning) -> LearnedText | None:
    """What was learned of a source prompt's tokens; None if nothing was."""
    options = conditioning[0][1]
    if STATES not in options or TOKEN_KEYS not in options:
        return None
    vectors = {key.removeprefix(_PREFIX): value for key, value in options.items() if key.startswith(_PREFIX)}
    tokens, positions = (tuple(options[name].tolist()) for name in (TOKEN_KEYS, LEARNED_PLACES))
    return LearnedText(options[STATES], tokens, positions, vectors)


def without_learned(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a prompt that has become a null text, which has states of its own."""
    return {key: value for key, value in options.items() if key not in LEARNED}
