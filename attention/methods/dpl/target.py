"""A target prompt whose unchanged nouns keep what was learned for them (Dynamic Prompt Learning, section 3.2)."""

from __future__ import annotations

from typing import Any

import torch

from ....host.conditioning import Conditioning
from ....host.marks import STATES
from ....host.progress import stop_if_cancelled
from ....host.text_encoder import learnable
from ....inversion.learned import LearnedText, learned_text
from ....inversion.record import Inversion
from ...words.alignment import CHUNK, align
from ...words.prompt import Prompt

END = 49407
"""The end token of every CLIP's vocabulary."""


def kept_places(learned: LearnedText, target: Prompt) -> dict[int, int]:
    """Places of a target prompt that stand for learned ones of the source, and which of its P places each stands for.

    As in Prompt-to-Prompt's refinement, tokens that both prompts have in the same order are the same.
    """
    before, after = _live(learned.tokens), _live(target.ids)
    origins = align([learned.tokens[p] for p in before], [target.ids[p] for p in after])
    pairs = {place: before[index] for place, index in zip(after, origins, strict=True) if index is not None}
    number = {position: index for index, position in enumerate(learned.positions)}
    return {
        place: number[origin]
        for place, origin in pairs.items()
        if origin in number and target.ids[place] == learned.tokens[origin]
    }


def with_learned_words(clip: Any, prompt: Prompt, conditioning: Conditioning, inversion: Inversion) -> Conditioning:
    """A prompt's conditioning with its states for every step of an inversion; changed nouns are plain.

    It takes one text encoding for each step and image, and none where the prompt has no learned word.

    Raises:
        ValueError: the inversion has no learned words, or a quantised encoder.
    """
    learned = learned_text(inversion.conditioning)
    if learned is None:
        raise ValueError(
            f"The inversion ({inversion.describe()}) has no learned words. Connect Dynamic Prompt Learning's inversion "
            "to Prompt with Words, or nothing."
        )
    kept = kept_places(learned, prompt)
    if not kept:
        return conditioning
    text, columns, steps = learnable(clip, prompt.text, tuple(kept)), list(kept.values()), []
    for number in range(len(learned.states)):
        stop_if_cancelled()
        images = [
            text.encode({name: vectors[number, image, columns] for name, vectors in learned.vectors.items()})
            for image in range(learned.states.shape[1])
        ]
        steps.append(torch.cat(images).float().cpu())
    (states, options), *others = conditioning
    return [[states, {**options, STATES: torch.stack(steps)}], *others]


def _live(tokens: tuple[int, ...]) -> list[int]:
    """Places up to the first end token of each part, as `alignment.live_positions` of a prompt."""
    found = []
    for start in range(0, len(tokens), CHUNK):
        part = tokens[start : start + CHUNK]
        found += range(start, start + (part.index(END) + 1 if END in part else len(part)))
    return found
