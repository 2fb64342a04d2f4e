"""Nodes of the methods that put the source's features into the edit: FPE, MasaCtrl, Plug-and-Play."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..attention import engine
from ..attention.fpe import FPE
from ..attention.layers import RULES
from ..attention.masactrl import MasaCtrl, WordMasks
from ..attention.pnp import SCHEDULES, PnP
from .sockets import (
    CATEGORY,
    EditMasksSocket,
    PromptSocket,
    fraction_input,
    inversion_input,
    model_input,
    model_output,
    one_call_input,
)

CUSTOM = "range below"


def layers_inputs() -> list[io.Input]:
    """A rule for layers, and a range for those who want another."""
    return [
        io.Combo.Input(
            "layers",
            options=[*RULES, CUSTOM],
            default=RULES[0],
            tooltip="Layers whose self-attention maps are the source's. More and finer ones keep more of the "
            "structure; all of them freeze the image.",
            advanced=True,
        ),
        io.String.Input(
            "layer_range",
            default="3-13",
            tooltip="Layer numbers in the order in which the model calls them, from 0, both ends included; used when "
            "layers says so.",
            advanced=True,
        ),
    ]


class FPENode(io.ComfyNode):
    """Free-Prompt-Editing."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditFPE",
            display_name="FPE",
            category=f"{CATEGORY}/methods",
            description="Free-Prompt-Editing: keeps the image's structure and lets the prompt say what everything is. "
            "It takes the source's self-attention maps and nothing else, so it needs neither a mask nor a caption.",
            search_aliases=["fpe", "free prompt editing", "self-attention map replacement", "structure preserving"],
            inputs=[
                model_input(),
                inversion_input(),
                fraction_input(
                    "end", 0.8, "Share of the steps whose maps are the source's. Less lets shapes change more."
                ),
                *layers_inputs(),
                io.Boolean.Input(
                    "both_halves",
                    default=False,
                    tooltip="Take the maps in the unconditional half of guidance too. Keeps more; as released it is "
                    "off.",
                    advanced=True,
                ),
                one_call_input(),
            ],
            outputs=[model_output()],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        inversion: Any,
        end: float,
        layers: str,
        layer_range: str,
        both_halves: bool,
        one_call: bool,
    ) -> io.NodeOutput:
        control = FPE(layer_range if layers == CUSTOM else layers, end, both_halves)
        return io.NodeOutput(engine.install(model, control, inversion, packed=one_call or None))


class MasaCtrlNode(io.ComfyNode):
    """MasaCtrl."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditMasaCtrl",
            display_name="MasaCtrl",
            category=f"{CATEGORY}/methods",
            description="Mutual self-attention: the prompt (or a ControlNet on it) draws a new pose or layout, and "
            "all of its look is read from the source image.",
            search_aliases=[
                "masactrl",
                "mutual self-attention",
                "change pose",
                "non-rigid edit",
                "consistent character",
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
                EditMasksSocket.Input(
                    "masks",
                    optional=True,
                    tooltip="From Edit Masks: the object reads the source's object, the rest the source's rest.",
                ),
                PromptSocket.Input(
                    "source_prompt", optional=True, tooltip="Caption of the source, for masks from words."
                ),
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
        return io.NodeOutput(engine.install(model, control, inversion, packed=one_call or None))


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


class PnPNode(io.ComfyNode):
    """Plug-and-Play."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditPnP",
            display_name="Plug-and-Play",
            category=f"{CATEGORY}/methods",
            description="Plug-and-Play features: keeps layout and shapes and changes what they look like, for style, "
            "material or season. It takes the source's self-attention maps and the features of one residual block.",
            search_aliases=["pnp", "plug-and-play", "feature injection", "image translation", "style transfer"],
            inputs=[
                model_input(),
                inversion_input(),
                fraction_input(
                    "attention_end", 0.5, "Share of the steps with the source's self-attention maps (tau_A)."
                ),
                fraction_input("feature_end", 0.8, "Share of the steps with the source's residual features (tau_f)."),
                io.Combo.Input(
                    "schedule",
                    options=list(SCHEDULES),
                    default=SCHEDULES[0],
                    tooltip="How the sampler's own negative prompt gives way to the one connected here: in equal "
                    "steps, not at all, or soon.",
                    advanced=True,
                ),
                fraction_input(
                    "alpha", 1.0, "Of the sampler's negative: 1 for photographs, 0.75 for generated images.", True
                ),
                one_call_input(),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="What the result shall not look like any more, such as the source's caption. Costs one "
                    "row per step.",
                ),
            ],
            outputs=[model_output()],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        inversion: Any,
        attention_end: float,
        feature_end: float,
        schedule: str,
        alpha: float,
        one_call: bool,
        negative: list[Any] | None = None,
    ) -> io.NodeOutput:
        control = PnP(attention_end, feature_end, negative, schedule, alpha)
        return io.NodeOutput(engine.install(model, control, inversion, packed=one_call or None))
