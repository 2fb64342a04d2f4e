"""The node of EmbCtrl."""

from __future__ import annotations

from typing import Any

from ..attention.methods.embctrl import embctrl
from ..host.schemas import io
from .inputs import source_prompt_input, target_prompt_input
from .sockets import CATEGORY


class EmbCtrlNode(io.ComfyNode):
    """EmbCtrl."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditEmbCtrl",
            display_name="Change Colour or Material (EmbCtrl)",
            category=f"{CATEGORY}/prompt",
            description="Exchanges the text embeddings of the changed words only, and keeps the source's for all "
            "others: the simplest edit of colour or material, by the prompt alone.",
            search_aliases=[
                "embctrl",
                "embedding edit",
                "masafusion",
                "context embedding",
                "token swap",
                "recolour",
                "recolor",
                "change material",
            ],
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


NODES = [EmbCtrlNode]
