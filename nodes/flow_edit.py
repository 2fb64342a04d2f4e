"""The node of FlowEdit."""

from __future__ import annotations

from typing import Any

from ..attention.methods.flow_edit import FlowEdit
from ..host.schemas import io
from .inputs import fraction_input, guidance_input
from .sockets import CATEGORY


class FlowEditNode(io.ComfyNode):
    """FlowEdit as a sampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditFlowEdit",
            display_name="Edit by Two Captions (FlowEdit)",
            category=f"{CATEGORY}/methods",
            description="Edits a picture with a transformer (Flux, SD3, Chroma, Z-Image) by a caption of what it shows "
            "and one of what it shall show, without an inversion. A sampler for SamplerCustomAdvanced: the picture's "
            "latent goes there, and the wanted caption to its guider.",
            search_aliases=[
                "flowedit",
                "inversion-free editing",
                "edit photo",
                "replace",
                "recolour",
                "flux edit",
                "sd3 edit",
            ],
            inputs=[
                io.Conditioning.Input("source", tooltip="A caption of the picture as it is."),
                guidance_input(
                    1.5,
                    "Scale of the source caption: 1.5 for Flux, 3.5 for SD3. The wanted caption's is the guider's "
                    "(13.5 for SD3), or FluxGuidance's (5.5) with cfg 1.",
                ),
                fraction_input(
                    "start",
                    0.14,
                    "Share of the steps left out at high noise: more keeps more of the picture. 0.14 for Flux, 0.34 "
                    "for SD3.",
                ),
                fraction_input(
                    "end",
                    1.0,
                    "Share of the steps after which the edit is sampled on without looking at the picture; less lets "
                    "details change more.",
                    advanced=True,
                ),
                io.Int.Input(
                    "average",
                    default=1,
                    min=1,
                    max=16,
                    tooltip="Draws of noise per step. More are steadier, and each costs as much as the first.",
                    advanced=True,
                ),
            ],
            outputs=[io.Sampler.Output(display_name="sampler", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, source: list[Any], guidance: float, start: float, end: float, average: int) -> io.NodeOutput:
        return io.NodeOutput(FlowEdit(source, guidance, start, end, average))


NODES = [FlowEditNode]
