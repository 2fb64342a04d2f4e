"""The node of Prompt-to-Prompt's local blend."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..attention.masks.cells import selecting
from ..attention.methods.background import ExactBackground
from ..attention.methods.local_blend import LocalBlend
from ..attention.words.lines import split_words
from ..host.schemas import io
from .inputs import (
    fraction_input,
    inversion_input,
    model_input,
    model_output,
    put,
    source_prompt_input,
    target_prompt_input,
)
from .sockets import CATEGORY


class LocalBlendNode(io.ComfyNode):
    """Local blend."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditLocalBlend",
            display_name="Keep the Rest by Words (Local Blend)",
            category=f"{CATEGORY}/masks",
            description="Keeps the source wherever the named words do not attend: a background that nobody has to "
            "mask. Put it behind Prompt-to-Prompt; it goes with other edits of captioned sources too.",
            search_aliases=[
                "local blend",
                "p2p blend words",
                "attention mask",
                "automatic mask",
                "local edit",
                "keep background",
            ],
            inputs=[
                model_input(),
                inversion_input(),
                source_prompt_input(),
                target_prompt_input(),
                io.String.Input(
                    "source_words", default="", tooltip="What is edited, in the source's caption; commas between words."
                ),
                io.String.Input("target_words", default="", tooltip="What it becomes, in the edit's prompt."),
                io.String.Input(
                    "subtract",
                    default="",
                    tooltip="Words of either prompt whose places stay as they are; may be empty.",
                ),
                fraction_input("start", 0.2, "Share of the steps before blending begins."),
                fraction_input(
                    "threshold",
                    0.3,
                    "Of a word's map, divided by its largest value. Higher makes the edited place smaller.",
                ),
                fraction_input("subtract_threshold", 0.3, "The same for the words to subtract.", advanced=True),
                io.Mask.Input(
                    "mask", optional=True, tooltip="Where the image may change, instead of what the words say."
                ),
            ],
            outputs=[model_output()],
        )

    @classmethod
    def execute(  # noqa: PLR0913, PLR0917 (one argument per input)
        cls,
        model: Any,
        inversion: Any,
        source_prompt: Any,
        target_prompt: Any,
        source_words: str,
        target_words: str,
        subtract: str,
        start: float,
        threshold: float,
        subtract_threshold: float,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        if mask is not None:
            control = ExactBackground(selecting(mask, "mask of Local Blend", _DRAW), start, "Local Blend")
            return put(model, control, inversion)
        control = LocalBlend(
            source_prompt,
            target_prompt,
            split_words(source_words),
            split_words(target_words),
            split_words(subtract),
            start,
            threshold,
            subtract_threshold,
        )
        control.columns()
        return put(model, control, inversion)


_DRAW = "Draw where the image may change, or disconnect the mask and name words"

NODES = [LocalBlendNode]
