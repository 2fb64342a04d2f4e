"""The node of Plug-and-Play."""

from __future__ import annotations

from typing import Any

from ..attention.methods.pnp import SCHEDULES, PnP
from ..host.schemas import io
from .inputs import fraction_input, inversion_input, model_input, model_output, one_call_input, put
from .sockets import CATEGORY


class PnPNode(io.ComfyNode):
    """Plug-and-Play."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditPnP",
            display_name="Change Style or Season (Plug-and-Play)",
            category=f"{CATEGORY}/methods",
            description="Plug-and-Play features: keeps layout and shapes and changes what they look like, for style, "
            "material or season. It takes the source's self-attention maps and the features of one residual block.",
            search_aliases=[
                "pnp",
                "plug-and-play",
                "feature injection",
                "image translation",
                "style transfer",
                "edit photo",
                "change style",
                "season",
                "weather",
                "day to night",
            ],
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
        return put(model, control, inversion, one_call)


NODES = [PnPNode]
