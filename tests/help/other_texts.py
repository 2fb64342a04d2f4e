"""The host's tokenizers of transformers, and tiny encoders behind them where rows are to be counted.

T5's and Qwen's files come with the host. Gemma's come with its weights, which are not here: its tokenizer is the host's
own class on a vocabulary made of a few sentences; and Mistral's habits are tried on Qwen's vocabulary.
"""

from __future__ import annotations

import io
from functools import cache
from types import SimpleNamespace
from typing import Any

import comfy.text_encoders.flux
import comfy.text_encoders.lumina2
import comfy.text_encoders.pixart_t5
import comfy.text_encoders.qwen_image
import comfy.text_encoders.sd3_clip
import comfy.text_encoders.z_image
import sentencepiece
import torch
from attention_edit.attention.words.prompt import Prompt, read_prompt


class LeftPadded(comfy.text_encoders.flux.KleinTokenizer):
    """Mistral's way (Flux.2 dev): a begin token, pads ahead of it, a template of its own; on Qwen's vocabulary."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
        super().__init__(embedding_directory, tokenizer_data or {})
        own = self.qwen3_4b
        own.start_token, own.pad_left, own.min_length = 151643 - 1, True, 60
        self.llama_template = "[SYSTEM_PROMPT]You reason about\npictures.[/SYSTEM_PROMPT][INST]{}[/INST]"


TOKENIZERS = {
    "SD3": comfy.text_encoders.sd3_clip.SD3Tokenizer,
    "Flux": comfy.text_encoders.flux.FluxTokenizer,
    "Chroma": comfy.text_encoders.pixart_t5.PixArtTokenizer,
    "Klein": comfy.text_encoders.flux.KleinTokenizer,
    "left": LeftPadded,
    "ZImage": comfy.text_encoders.z_image.ZImageTokenizer,
    "QwenImage": comfy.text_encoders.qwen_image.QwenImageTokenizer,
    "Lumina2": comfy.text_encoders.lumina2.LuminaTokenizer,
}
TEMPLATED = ("Klein", "left", "ZImage", "QwenImage")
"""Those that put the prompt into a template, and read no weights."""
SMALL = {
    "num_hidden_layers": 3,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def _gemma() -> bytes:
    """Gemma's file: SentencePiece with bytes for what it does not know."""
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red cat and a black dog on a mat", "two red pandas playing in a garden"] * 20),
        model_writer=made,
        vocab_size=330,
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    return made.getvalue()


@cache
def tokenizer(kind: str) -> Any:
    """A host tokenizer; `kind` is one of TOKENIZERS."""
    data = {}
    if kind == "Lumina2":
        data = {"spiece_model": torch.frombuffer(bytearray(_gemma()), dtype=torch.uint8)}
    return TOKENIZERS[kind](tokenizer_data=data)


class OtherClip:
    """What reading a prompt needs of a host CLIP.

    Args:
        missing: text encoders whose weights are not loaded. options: of lengths, as the host's nodes set them.
    """

    def __init__(self, kind: str, missing: tuple[str, ...] = (), options: dict[str, int] | None = None) -> None:
        self.tokenizer, self.tokenizer_options = tokenizer(kind), options or {}
        self.cond_stage_model = SimpleNamespace(**dict.fromkeys(missing))

    def tokenize(self, text: str, return_word_ids: bool = False) -> Any:
        given = {"tokenizer_options": self.tokenizer_options} if self.tokenizer_options else {}
        return self.tokenizer.tokenize_with_weights(text, return_word_ids, **given)


@cache
def read(kind: str, text: str) -> Prompt:
    """A prompt of a kind."""
    return read_prompt(OtherClip(kind), text)
