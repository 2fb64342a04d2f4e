"""The node that keeps the background exactly."""

from __future__ import annotations

from typing import Any

from ..attention.methods.background import ExactBackground
from ..host.schemas import io
from .inputs import fraction_input, inversion_input, model_input, model_output, put
from .sockets import CATEGORY, EditMasksSocket


class ExactBackgroundNode(io.ComfyNode):
    """Exact background."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditBackground",
            display_name="Exact Background",
            category=f"{CATEGORY}/masks",
            description="Keeps the image outside the changed mask as it was, up to what the VAE itself loses, by "
            "blending in the source's own trajectory at every step. Goes with any sampler and any edit.",
            search_aliases=[
                "latent blending",
                "local blend",
                "keep background",
                "blended diffusion",
                "preserve background",
            ],
            inputs=[
                model_input(),
                inversion_input(),
                EditMasksSocket.Input("masks", tooltip="What may change, from Edit Masks."),
                fraction_input(
                    "start",
                    0.0,
                    "Share of the steps after which blending begins. 0 from the start; MAG-Edit 0.7, "
                    "Prompt-to-Prompt 0.2.",
                ),
            ],
            outputs=[model_output()],
        )

    @classmethod
    def execute(cls, model: Any, inversion: Any, masks: Any, start: float) -> io.NodeOutput:
        return put(model, ExactBackground(masks.changed, start), inversion)


NODES = [ExactBackgroundNode]
