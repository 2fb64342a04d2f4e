"""The node of MasaCtrl."""

from __future__ import annotations

from typing import Any

from ..attention.methods.masactrl import MasaCtrl, WordMasks
from ..host.schemas import io
from .inputs import fraction_input, inversion_input, model_input, model_output, one_call_input, put
from .sockets import CATEGORY, EditMasksSocket, PromptSocket


class MasaCtrlNode(io.ComfyNode):
    """MasaCtrl."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditMasaCtrl",
            display_name="Change Pose (MasaCtrl)",
            category=f"{CATEGORY}/methods",
            description="Mutual self-attention: the prompt (or a ControlNet on it) draws a new pose or layout, and "
            "all of its look is read from the source image.",
            search_aliases=[
                "masactrl",
                "mutual self-attention",
                "change pose",
                "non-rigid edit",
                "consistent character",
                "edit photo",
                "change action",
                "character variation",
            ],
            inputs=[
                model_input(),
                inversion_input(),
                fraction_input(
                    "start",
                    0.08,
                    "Share of the steps before it begins (4 of 50). Later lets the layout change more, and keeps less "
                    "of the look.",
                ),
                io.Int.Input(
                    "first_layer",
                    default=-1,
                    min=-1,
                    max=69,
                    tooltip="First layer that reads the source; -1 takes 10 of 16 for SD1.x and SD2.x, 44 of 70 for "
                    "SDXL. Lower keeps more of the source, its layout too.",
                ),
                fraction_input("end", 1.0, "Share of the steps after which it stops.", advanced=True),
                io.Boolean.Input(
                    "union",
                    default=False,
                    tooltip="The edit keeps its own keys and values beside the source's, so that new things can have "
                    "a look of their own.",
                    advanced=True,
                ),
                fraction_input("threshold", 0.1, "Of masks from words: higher makes them smaller.", advanced=True),
                one_call_input(),
                *_object_inputs(),
            ],
            outputs=[model_output()],
        )

    @classmethod
    def execute(  # noqa: PLR0913, PLR0917 (one argument per input)
        cls,
        model: Any,
        inversion: Any,
        start: float,
        first_layer: int,
        end: float,
        union: bool,
        threshold: float,
        one_call: bool,
        masks: Any = None,
        source_prompt: Any = None,
        target_prompt: Any = None,
        source_words: str = "",
        target_words: str = "",
    ) -> io.NodeOutput:
        control = MasaCtrl(
            start,
            None if first_layer < 0 else first_layer,
            end,
            None if masks is None else (masks.source, masks.target),
            word_masks(source_prompt, target_prompt, source_words, target_words, threshold),
            union,
        )
        if control.masks is not None and control.words is not None:
            raise ValueError("MasaCtrl takes masks or words, not both: disconnect masks, or empty the words.")
        return put(model, control, inversion, one_call)


def _object_inputs() -> list[io.Input]:
    """The object, by masks or by words."""
    return [
        EditMasksSocket.Input(
            "masks",
            optional=True,
            tooltip="From Edit Masks: the object reads the source's object, the rest the source's rest.",
        ),
        PromptSocket.Input("source_prompt", optional=True, tooltip="Caption of the source, for masks from words."),
        PromptSocket.Input("target_prompt", optional=True, tooltip="Prompt of the edit, for masks from words."),
        io.String.Input(
            "source_words",
            default="",
            optional=True,
            tooltip="The object as the caption of the source names it.",
        ),
        io.String.Input(
            "target_words", default="", optional=True, tooltip="The object as the prompt of the edit names it."
        ),
    ]


def word_masks(source: Any, target: Any, source_words: str, target_words: str, threshold: float) -> WordMasks | None:
    """Masks from words, None if none are named.

    Raises:
        ValueError: only some of prompts and words are given, or a word is not in its prompt.
    """
    if not source_words.strip() and not target_words.strip():
        return None
    missing = [
        name
        for name, value in (
            ("source_prompt", source),
            ("target_prompt", target),
            ("source_words", source_words.strip()),
            ("target_words", target_words.strip()),
        )
        if not value
    ]
    if missing:
        raise ValueError(
            f"MasaCtrl's masks from words need both prompts and both words; {', '.join(missing)} is missing. Connect "
            "Prompt with Words, and name the object as each prompt does."
        )
    words = WordMasks(source, target, source_words, target_words, threshold)
    words.columns()
    return words


NODES = [MasaCtrlNode]
