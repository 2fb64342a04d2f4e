"""A generated image as the source of an edit."""

from __future__ import annotations

from typing import Any

import comfy.model_management

from ..host.models import latent_of
from ..host.schemas import io
from ..inversion.generated import GeneratedSource
from ..inversion.schedule import OFFSETS
from .inputs import guidance_input
from .sockets import CATEGORY, InversionSocket


class RecordSourceNode(io.ComfyNode):
    """Source from a prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditRecordSource",
            display_name="Source from Prompt",
            category=f"{CATEGORY}/inversion",
            description="Draws an image from a prompt and keeps every step of it, so that all edits work on generated "
            "images as they do on photographs, and without an inversion's error.",
            search_aliases=["generated image editing", "record trajectory", "synthetic source", "text to image edit"],
            inputs=[
                io.Model.Input("model", tooltip="The model without edits (LoRAs are fine)."),
                io.Conditioning.Input("positive", tooltip="The source prompt."),
                io.Conditioning.Input("negative", tooltip="The negative prompt."),
                io.Latent.Input("latent", tooltip="Empty Latent Image: only its size and batch are used."),
                io.Int.Input("steps", default=50, min=1, max=1000, tooltip="DDIM steps, which the edit will use too."),
                guidance_input(7.5, "Guidance scale of the source."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of the noise; another one is another image.",
                ),
                io.Combo.Input(
                    "schedule",
                    options=list(OFFSETS),
                    default=next(iter(OFFSETS)),
                    tooltip="Timesteps 980, 960 ... 0 as the editing papers' code, or 981 ... 1 as diffusers.",
                    advanced=True,
                ),
            ],
            outputs=[
                InversionSocket.Output(display_name="inversion", tooltip="The image's whole trajectory, for edits."),
                io.Latent.Output(display_name="latent", tooltip="The image that was drawn."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: list[Any],
        negative: list[Any],
        latent: dict[str, Any],
        steps: int,
        guidance: float,
        seed: int,
        schedule: str,
    ) -> io.NodeOutput:
        source = GeneratedSource(steps, OFFSETS[schedule], seed)
        inversion = source(model, latent, positive, negative, guidance).inversion
        image = latent_of(model, inversion.latents[0])
        return io.NodeOutput(inversion, {"samples": image.to(comfy.model_management.intermediate_device())})


NODES = [RecordSourceNode]
