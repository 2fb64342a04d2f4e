"""Edit Setup: everything that a stock sampler needs to run an edit."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io
from torch import Tensor

from ..attention.engine.install import pin
from ..inversion.start import schedule_from
from .inputs import inversion_input, model_output
from .sockets import CATEGORY


class NoNoise:
    """The host's NOISE interface: the start latent is the inverted noise already, so none is added."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def generate_noise(self, input_latent: dict[str, Any]) -> Tensor:
        """Zeros of the latent's shape."""
        return torch.zeros_like(input_latent["samples"], device="cpu")


class EditSetupNode(io.ComfyNode):
    """Start latent and schedule of an edit."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditSetup",
            display_name="Edit Setup",
            category=CATEGORY,
            description="The last node before the sampler. Its model starts at the inverted noise and keeps to the "
            "inversion's schedule in any sampler node: KSampler's steps, scheduler and denoise are then not used. "
            "SamplerCustomAdvanced takes noise, sigmas and latent as well.",
            search_aliases=["inverted noise", "inversion sampler", "edit sampler"],
            inputs=[
                io.Model.Input("model", tooltip="The model with all its edits."),
                inversion_input(),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="1 starts at the inverted noise. Less starts later on the image's trajectory and keeps "
                    "more of it.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of random choices inside edits, for SamplerCustomAdvanced (KSampler has its own).",
                ),
            ],
            outputs=[
                model_output("KSampler, or a guider of SamplerCustomAdvanced"),
                io.Noise.Output(display_name="noise", tooltip="No noise: the latent holds it already."),
                io.Sigmas.Output(display_name="sigmas", tooltip="The inversion's schedule."),
                io.Latent.Output(display_name="latent", tooltip="The inverted noise, for either sampler node."),
            ],
        )

    @classmethod
    def execute(cls, model: Any, inversion: Any, denoise: float, seed: int) -> io.NodeOutput:
        schedule = schedule_from(inversion, denoise)
        pinned = pin(model, inversion, schedule)
        start = model.get_model_object("latent_format").process_out(inversion.at(schedule[0]))
        latent = {"samples": start.to(comfy.model_management.intermediate_device())}
        return io.NodeOutput(pinned, NoNoise(seed), torch.tensor(schedule), latent)


NODES = [EditSetupNode]
