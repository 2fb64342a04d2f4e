"""Nodes that edit by what stands in two prompts: Prompt-to-Prompt, its local blend, and EmbCtrl."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..attention import engine, word_lines
from ..attention.background import ExactBackground
from ..attention.embctrl import embctrl
from ..attention.local_blend import LocalBlend
from ..attention.masks import as_mask
from ..attention.p2p import MODES, P2P
from .injection import CUSTOM, layers_inputs
from .sockets import CATEGORY, PromptSocket, fraction_input, inversion_input, model_input, model_output, one_call_input


def source_prompt_input() -> io.Input:
    """The source's words."""
    return PromptSocket.Input(
        "source_prompt",
        tooltip="Words of the source: the Prompt with Words whose conditioning the inversion was made with.",
    )


def target_prompt_input() -> io.Input:
    """The edit's words."""
    return PromptSocket.Input(
        "target_prompt", tooltip="Words of the edit: the Prompt with Words that the sampler's positive comes from."
    )


class P2PNode(io.ComfyNode):
    """Prompt-to-Prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditP2P",
            display_name="Prompt-to-Prompt",
            category=f"{CATEGORY}/methods",
            description="Edits by changing the caption: swap a word, add words, or make a word stronger or weaker. "
            "Words that stay keep their places in the image.",
            search_aliases=["p2p", "prompt-to-prompt", "word swap", "attention reweighting", "attention refine"],
            inputs=[
                model_input(),
                inversion_input(),
                source_prompt_input(),
                target_prompt_input(),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default=MODES[0],
                    tooltip="Swap words one for one, or refine: words are added or taken away. Auto swaps where both "
                    "prompts have as many words.",
                ),
                io.String.Input(
                    "weights",
                    default="",
                    multiline=True,
                    tooltip="Words of the edit's prompt to strengthen or weaken, one per line: red: 2. Below 1 "
                    "weakens, below 0 turns away. cat#2 is the second cat.",
                ),
                fraction_input(
                    "cross_end", 0.8, "Share of the steps in which words keep their places. Less frees shapes."
                ),
                fraction_input(
                    "self_end", 0.4, "Share of the steps in which the structure is kept. Less lets shapes change."
                ),
                fraction_input("cross_start", 0.0, "Share of the steps before words keep their places.", advanced=True),
                fraction_input("self_start", 0.0, "Share of the steps before the structure is kept.", advanced=True),
                *layers_inputs(),
                io.String.Input(
                    "windows",
                    default="",
                    multiline=True,
                    tooltip="Words with a share of the steps of their own, one per line: red: 0-0.4.",
                    advanced=True,
                ),
                io.Boolean.Input(
                    "released_rule",
                    default=False,
                    tooltip="Token positions as the released code has them, which are off behind a swapped word of "
                    "another length. For comparisons only.",
                    advanced=True,
                ),
                one_call_input(),
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
        mode: str,
        weights: str,
        cross_end: float,
        self_end: float,
        cross_start: float,
        self_start: float,
        layers: str,
        layer_range: str,
        windows: str,
        released_rule: bool,
        one_call: bool,
    ) -> io.NodeOutput:
        control = P2P(
            source_prompt,
            target_prompt,
            mode,
            (cross_start, cross_end),
            (self_start, self_end),
            layer_range if layers == CUSTOM else layers,
            word_lines.weights(weights),
            word_lines.windows(windows),
            released_rule,
        )
        control.check()
        return io.NodeOutput(engine.install(model, control, inversion, packed=one_call or None))


class LocalBlendNode(io.ComfyNode):
    """Local blend."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditLocalBlend",
            display_name="Local Blend",
            category=f"{CATEGORY}/masks",
            description="Keeps the source wherever the named words do not attend: a background that nobody has to "
            "mask. Put it behind Prompt-to-Prompt; it goes with other edits of captioned sources too.",
            search_aliases=["local blend", "p2p blend words", "attention mask", "automatic mask", "local edit"],
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
            control = ExactBackground(_drawn(mask), start, "Local Blend")
            return io.NodeOutput(engine.install(model, control, inversion))
        control = LocalBlend(
            source_prompt,
            target_prompt,
            word_lines.words(source_words),
            word_lines.words(target_words),
            word_lines.words(subtract),
            start,
            threshold,
            subtract_threshold,
        )
        control.columns()
        return io.NodeOutput(engine.install(model, control, inversion))


def _drawn(mask: Tensor) -> Tensor:
    """A mask (M, H, W) bool; ValueError if it selects nothing, which would bring the source back."""
    chosen = as_mask(mask, "mask of Local Blend")
    if not chosen.any():
        raise ValueError(
            "The mask of Local Blend selects nothing, so the result would be the source. Draw where the image may "
            "change, or disconnect the mask and name words."
        )
    return chosen


class EmbCtrlNode(io.ComfyNode):
    """EmbCtrl."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditEmbCtrl",
            display_name="EmbCtrl",
            category=f"{CATEGORY}/prompt",
            description="Exchanges the text embeddings of the changed words only, and keeps the source's for all "
            "others: the simplest edit of colour or material, by the prompt alone.",
            search_aliases=["embctrl", "embedding edit", "masafusion", "context embedding", "token swap"],
            inputs=[
                source_prompt_input(),
                io.Conditioning.Input("source", tooltip="The source's conditioning, from the same Prompt with Words."),
                target_prompt_input(),
                io.Conditioning.Input("target", tooltip="The edit's conditioning, from the same Prompt with Words."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="conditioning", tooltip="For the sampler's positive."),
            ],
        )

    @classmethod
    def execute(cls, source_prompt: Any, source: list[Any], target_prompt: Any, target: list[Any]) -> io.NodeOutput:
        return io.NodeOutput(embctrl(source_prompt, source, target_prompt, target))
