"""The node of Free-Prompt-Editing."""

from __future__ import annotations

from typing import Any

from ..attention.methods.fpe import FPE
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


class FPENode(io.ComfyNode):
    """Free-Prompt-Editing."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditFPE",
            display_name="Keep Structure (FPE)",
            category=f"{CATEGORY}/methods",
            description="Free-Prompt-Editing: keeps the image's structure and lets the prompt say what everything is. "
            "It takes the source's self-attention maps and nothing else, so it needs neither a mask nor a caption.",
            search_aliases=[
                "fpe",
                "free prompt editing",
                "self-attention map replacement",
                "structure preserving",
                "edit photo",
                "keep composition",
                "replace",
                "change style",
            ],
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
        control = FPE(layer_rule(layers, layer_range), end, both_halves)
        return put(model, control, inversion, one_call)


NODES = [FPENode]
