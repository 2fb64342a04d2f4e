"""Every inversion of the pack as a run of a tiny model, on any device and in any type of weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import edits
import tiny
import torch
from acts import STEPS, Place
from attention_edit.attention.masks.difference import diff_mask
from attention_edit.attention.methods.dpl.inversion import DynamicPromptLearning
from attention_edit.attention.methods.dpl.settings import RELEASED
from attention_edit.attention.words.prompt import read_prompt
from attention_edit.inversion.ddim_inversion import DDIMInversion
from attention_edit.inversion.direct import DirectInversion
from attention_edit.inversion.fixed_point import FixedPointInversion
from attention_edit.inversion.generated import GeneratedSource
from attention_edit.inversion.improvement import Improvement
from attention_edit.inversion.negative_prompt import NegativePromptInversion
from attention_edit.inversion.null_text import NullTextInversion
from attention_edit.inversion.reconstruct import reconstruct
from attention_edit.inversion.record import Inversion
from tiny_clip import encoded, tiny_clip
from torch import Tensor

Inverting = Callable[[Place, Inversion], Tensor]


def _improved(by: Improvement, guidance: float) -> Inverting:
    """The trajectory that an improvement of DDIM inversion finds."""
    return lambda place, found: by(place.model, found, place.text(3), guidance).inversion.latents


def _sampled(by: Improvement) -> Inverting:
    """What guided sampling makes of an improvement that has found a null text."""
    return lambda place, found: (
        reconstruct(place.model, by(place.model, found, place.text(3), 7.5).inversion, 7.5, None).latent
    )


def _negative(place: Place, found: Inversion) -> Tensor:
    read = replace(found, conditioning=tiny.prompt(5, place.kind))  # as from a file, with its text on the CPU
    return _sampled(NegativePromptInversion(0.5))(place, read)


NOUNS = "a cat and a dog"


def _learned(place: Place, _: Inversion) -> Tensor:
    """What guided sampling makes of the nouns and the null text that Dynamic Prompt Learning has found."""
    clip = tiny_clip(place.kind, place.dtype, device=place.device)
    text, empty = (encoded(clip, words, place.kind) for words in (NOUNS, ""))
    found = DDIMInversion(STEPS)(place.model, place.latent(), text).inversion
    how = replace(RELEASED, iterations=2, null=replace(RELEASED.null, inner=1, checkpointing=False))
    learning = DynamicPromptLearning(clip, read_prompt(clip, NOUNS), "cat, dog", how, edits.box())
    return reconstruct(place.model, learning(place.model, found, empty, 7.5).inversion, 7.5, None).latent


def _drawn(place: Place, _: Inversion) -> Tensor:
    made = GeneratedSource(STEPS, seed=7)(place.model, place.latent(), place.text(5), place.text(3), 7.5)
    return made.inversion.latents[0]


INVERSIONS: dict[str, Inverting] = {
    "DDIM": lambda _, found: found.latents,
    "reconstruct": lambda place, found: reconstruct(place.model, found, 7.5, place.text(3)).latent,
    "negative prompt": _negative,
    "null text": _sampled(NullTextInversion(inner=1, checkpointing=False)),
    "null text, checkpoints": _sampled(NullTextInversion(inner=1)),
    "learned nouns": _learned,
    "fixed point": _improved(FixedPointInversion(tolerance=0.0, iterations=2), 1.0),
    "direct": _improved(DirectInversion(0.5), 7.5),
    "source from prompt": _drawn,
    "difference mask": lambda place, _: (
        diff_mask(place.model, place.latent(), place.text(2), place.text(5), maps=2).heat
    ),
}


def invert(place: Place, name: str) -> Tensor:
    """What an inversion makes of the image at a place, on the CPU."""
    with place.flags(), torch.inference_mode():
        found = DDIMInversion(STEPS)(place.model, place.latent(), place.text(5)).inversion
        assert found.latents.device == tiny.CPU
        return INVERSIONS[name](place, found).cpu()
