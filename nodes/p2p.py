"""The node of Prompt-to-Prompt."""

from __future__ import annotations

from typing import Any

from ..attention.methods.p2p import MODES, P2P
from ..attention.words.lines import word_weights, word_windows
from ..host.schemas import io
from .inputs import (
    fraction_input,
    inversion_input,
    layer_rule,
    layers_inputs,
    model_input,
    model_output,
    one_call_input,
    put,
    source_prompt_input,
    target_prompt_input,
)
from .sockets import CATEGORY


class P2PNode(io.ComfyNode):
    """Prompt-to-Prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditP2P",
            display_name="Change Words (Prompt-to-Prompt)",
            category=f"{CATEGORY}/methods",
            description="Edits by changing the caption: swap a word, add words, or make a word stronger or weaker. "
            "Words that stay keep their places in the image.",
            search_aliases=[
                "p2p",
                "prompt-to-prompt",
                "word swap",
                "attention reweighting",
                "attention refine",
                "edit photo",
                "replace word",
                "recolour",
                "recolor",
            ],
            inputs=[
                model_input(),
                inversion_input(),
                source_prompt_input(),
                target_prompt_input(),
                *_word_inputs(),
                *_window_inputs(),
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
            layer_rule(layers, layer_range),
            word_weights(weights),
            word_windows(windows),
            released_rule,
        )
        control.check()
        return put(model, control, inversion, one_call)


def _word_inputs() -> list[io.Input]:
    """How words correspond, and how much each counts."""
    return [
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
    ]


def _window_inputs() -> list[io.Input]:
    """Shares of the steps in which words and structure are kept."""
    return [
        fraction_input("cross_end", 0.8, "Share of the steps in which words keep their places. Less frees shapes."),
        fraction_input("self_end", 0.4, "Share of the steps in which the structure is kept. Less lets shapes change."),
        fraction_input("cross_start", 0.0, "Share of the steps before words keep their places.", advanced=True),
        fraction_input("self_start", 0.0, "Share of the steps before the structure is kept.", advanced=True),
    ]


NODES = [P2PNode]
