"""The nodes of MaSaFusion: the method, and the intermediate image of its last run."""

from __future__ import annotations

from typing import Any

from ..attention.engine.install import install
from ..attention.methods.masafusion import LATE, STARTS, MaSaFusion
from ..host.schemas import io
from .inputs import (
    fraction_input,
    inversion_input,
    layer_rule,
    layers_inputs,
    model_input,
    model_output,
    one_call_input,
)
from .sockets import CATEGORY, BesideSocket, EditMasksSocket


class MaSaFusionNode(io.ComfyNode):
    """MaSaFusion."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditMaSaFusion",
            display_name="Draw Another Shape (MaSaFusion)",
            category=f"{CATEGORY}/methods",
            description="Mask-informed fusion: another shape inside the masks, first drawn as an intermediate image by "
            "the prompt and a sketch or pose (T2I-Adapter, ControlNet); outside, the source.",
            search_aliases=[
                "masafusion",
                "self-attention fusion",
                "sketch edit",
                "change shape",
                "intermediate image",
                "replace object",
                "inpaint",
                "pose edit",
                "edit photo",
            ],
            inputs=[
                model_input(),
                inversion_input(),
                EditMasksSocket.Input("masks", tooltip="Where the image may change, from Edit Masks."),
                io.Boolean.Input(
                    "intermediate",
                    default=True,
                    tooltip="Draw an intermediate image, whose attention map the edit takes inside the masks "
                    "(Algorithm 1). Off: the edit reads the source there (Algorithm 5), at 60 % of the cost.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Of the noise with which the intermediate image, and the edit inside the masks, begin.",
                ),
                *_published_inputs(),
                one_call_input(),
            ],
            outputs=[
                model_output(),
                BesideSocket.Output(display_name="intermediate", tooltip="For Intermediate Image, after the run."),
            ],
        )

    @classmethod
    def execute(  # noqa: PLR0913, PLR0917 (one argument per input)
        cls,
        model: Any,
        inversion: Any,
        masks: Any,
        intermediate: bool,
        seed: int,
        begins: str,
        layers: str,
        layer_range: str,
        start: float,
        end: float,
        null_text: bool,
        one_call: bool,
    ) -> io.NodeOutput:
        rule = layer_rule(layers, layer_range)
        control = MaSaFusion(masks.changed, intermediate, seed, begins, rule, start, end, not null_text)
        return io.NodeOutput(install(model, control, inversion, packed=one_call or None), control.drawn)


def _published_inputs() -> list[io.Input]:
    """What the paper leaves open, or compares."""
    return [
        io.Combo.Input(
            "begins",
            options=list(STARTS),
            default=STARTS[0],
            tooltip="Where the intermediate image begins: at fresh noise as the paper has it. With the inverted noise, "
            "everywhere or outside the masks only, its textures are often wrong.",
            advanced=True,
        ),
        *layers_inputs(
            LATE,
            "Layers whose self-attention is fused. The paper does not number them; 'from 10 of 16' are MasaCtrl's, on "
            "which it builds (44 of 70 for SDXL). More keep the source better outside and draw less freely inside.",
            own=(LATE,),
        ),
        fraction_input("start", 0.0, "Share of the steps before self-attention is fused.", advanced=True),
        fraction_input("end", 1.0, "Share of the steps after which it is not fused any more.", advanced=True),
        io.Boolean.Input(
            "null_text",
            default=False,
            tooltip="A null text of the inversion stands in the edit's negative prompt too, and not in the source's "
            "only, as in the paper.",
            advanced=True,
        ),
    ]


class IntermediateNode(io.ComfyNode):
    """The intermediate image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditIntermediate",
            display_name="Intermediate Image",
            category=f"{CATEGORY}/methods",
            description="The image that MaSaFusion has drawn beside the edit in the last run, to see whether it has "
            "the shape that is wanted. Connect VAE Decode.",
            search_aliases=["masafusion intermediate", "second latent", "branch latent"],
            inputs=[
                BesideSocket.Input("intermediate", tooltip="From MaSaFusion."),
                io.Latent.Input("after", tooltip="The sampler's latent, so that the image is fetched after the run."),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The intermediate image; connect VAE Decode.")],
        )

    @classmethod
    def execute(cls, intermediate: Any, after: dict[str, Any]) -> io.NodeOutput:
        return io.NodeOutput({"samples": intermediate.of(after).to(after["samples"])})


NODES = [MaSaFusionNode, IntermediateNode]
