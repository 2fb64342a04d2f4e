"""The prompt whose words other nodes can name."""

from __future__ import annotations

from typing import Any

from ..attention.words.prompt import read_prompt
from ..host.schemas import io
from .sockets import CATEGORY, InversionSocket, PromptSocket


class PromptNode(io.ComfyNode):
    """CLIP Text Encode that remembers where the words are."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditPrompt",
            display_name="Prompt with Words",
            category=f"{CATEGORY}/prompt",
            description="Encodes a text exactly as CLIP Text Encode does, and also says at which tokens its words "
            "stand, so that other nodes can show, weigh or swap a word by its name.",
            search_aliases=["clip text encode", "token index", "word tokens", "prompt tokens", "text prompt"],
            inputs=[
                io.Clip.Input("clip", tooltip="Text encoder of the checkpoint, or of Load CLIP."),
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The prompt, with weights (word:1.2) and embedding:name as in CLIP Text Encode.",
                ),
                InversionSocket.Input(
                    "learned_words",
                    optional=True,
                    tooltip="For the target prompt of an edit: Dynamic Prompt Learning's inversion. Words that the "
                    "source prompt has too keep what was learned for them at every step.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="conditioning", tooltip="The same as CLIP Text Encode gives."),
                PromptSocket.Output(display_name="prompt", tooltip="Its words, for nodes that take a word."),
            ],
        )

    @classmethod
    def execute(cls, clip: Any, text: str, learned_words: Any = None) -> io.NodeOutput:
        if clip is None:
            raise ValueError("The CLIP input is empty: this checkpoint has no text encoder. Load one with Load CLIP.")
        prompt = read_prompt(clip, text)
        conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        if learned_words is not None:
            from ..attention.methods.dpl.target import with_learned_words

            conditioning = with_learned_words(clip, prompt, conditioning, learned_words)
        return io.NodeOutput(conditioning, prompt.encoded(conditioning[0][0]))


NODES = [PromptNode]
