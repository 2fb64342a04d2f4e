"""The node of StyleAligned."""

from __future__ import annotations

from typing import Any

from ..attention.engine.layers import ALL
from ..attention.methods.style_aligned import StyleAligned
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
)
from .sockets import CATEGORY


class StyleAlignedNode(io.ComfyNode):
    """StyleAligned."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditStyleAligned",
            display_name="Same Style (StyleAligned)",
            category=f"{CATEGORY}/methods",
            description="Shared attention: the prompt draws what it says in the source's style, since the edit reads "
            "the source's keys and values beside its own.",
            search_aliases=[
                "stylealigned",
                "style aligned",
                "shared attention",
                "style transfer",
                "reference only",
                "style reference",
                "same style variation",
            ],
            inputs=[
                model_input(),
                inversion_input(),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How many times what the edit sees of the source counts beside what it sees of itself. 1 "
                    "is the paper's, 2 the released code's for photographs; 0 turns the node off.",
                ),
                io.Boolean.Input(
                    "adain",
                    default=True,
                    tooltip="Give the edit's queries and keys the source's mean and deviation, so that it looks more "
                    "at the source. On in the paper.",
                ),
                fraction_input("start", 0.0, "Share of the steps before it begins. Later frees the layout.", True),
                fraction_input("end", 1.0, "Share of the steps after which it stops.", True),
                *layers_inputs(ALL, "Layers that read the source's keys and values too. As released, all."),
                one_call_input(),
            ],
            outputs=[model_output()],
        )

    @classmethod
    def execute(  # noqa: PLR0913, PLR0917 (one argument per input)
        cls,
        model: Any,
        inversion: Any,
        strength: float,
        adain: bool,
        start: float,
        end: float,
        layers: str,
        layer_range: str,
        one_call: bool,
    ) -> io.NodeOutput:
        control = StyleAligned(strength, start, end, layer_rule(layers, layer_range), adain)
        return put(model, control, inversion, one_call)


NODES = [StyleAlignedNode]
