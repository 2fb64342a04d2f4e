"""Prompts with words for tests, read by the host's own SD1.x tokenizer."""

from __future__ import annotations

from functools import cache
from typing import Any

import comfy.sd1_clip
from attention_edit.attention.words.prompt import Prompt, read_prompt


class Clip:
    """What reading a prompt needs of a host CLIP."""

    def __init__(self) -> None:
        self.tokenizer = comfy.sd1_clip.SD1Tokenizer()

    def tokenize(self, text: str, return_word_ids: bool = False) -> Any:
        return self.tokenizer.tokenize_with_weights(text, return_word_ids)


@cache
def _clip() -> Clip:
    return Clip()


@cache
def prompt(text: str) -> Prompt:
    """A prompt of SD1.x; texts of more than 75 tokens have several parts."""
    return read_prompt(_clip(), text)
