"""Edit Setup: everything that a stock sampler needs to run an edit."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ..attention.engine.install import install, pin
from ..attention.engine.recorded import Keeping
from ..attention.engine.shelves import OFF, RAM, SHELVES
from ..attention.engine.turns import RecordTurn
from ..attention.engine.variation import Variation
from ..attention.masks.cells import check_aspect, resize, selecting
from ..host.schemas import io
from ..inversion.record import Inversion
from ..inversion.start import schedule_from
from .inputs import fraction_input, inversion_input, model_output
from .sockets import CATEGORY

KEPT_GB = 4.0
"""Enough for every method on SD1.5 at 512 pixels in 50 steps, and little beside a checkpoint and its text encoder."""
GIGABYTE = 1e9


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
            search_aliases=[
                "inverted noise",
                "inversion sampler",
                "edit sampler",
                "edit photo",
                "variation",
                "vary seed",
            ],
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
                    tooltip="Seed of random choices inside edits and of variation's noise, for SamplerCustomAdvanced "
                    "(KSampler has its own).",
                ),
                *_variation_inputs(),
                _record_input(),
                *_keep_inputs(),
            ],
            outputs=[
                model_output("KSampler, or a guider of SamplerCustomAdvanced"),
                io.Noise.Output(display_name="noise", tooltip="No noise: the latent holds it already."),
                io.Sigmas.Output(display_name="sigmas", tooltip="The inversion's schedule."),
                io.Latent.Output(display_name="latent", tooltip="The inverted noise, for either sampler node."),
            ],
        )

    @classmethod
    def execute(  # noqa: PLR0913, PLR0917 (the inputs)
        cls,
        model: Any,
        inversion: Any,
        denoise: float,
        seed: int,
        variation: float = 0.0,
        variation_mask: Tensor | None = None,
        record_turn: bool = False,
        keep_source: str = OFF,
        keep_gb: float = KEPT_GB,
    ) -> io.NodeOutput:
        schedule, varied = schedule_from(inversion, denoise), _variation(inversion, variation, seed, variation_mask)
        keeping = None if keep_source == OFF else Keeping(keep_source, int(keep_gb * GIGABYTE))
        pinned, start = pin(model, inversion, schedule, varied, keeping), inversion.at(schedule[0])
        if record_turn:
            pinned = install(pinned, RecordTurn(varied=varied is not None))
        if varied is not None:
            start = varied.start(inversion, schedule[0], inversion.batch)
        start = model.get_model_object("latent_format").process_out(start)
        latent = {"samples": start.to(comfy.model_management.intermediate_device())}
        return io.NodeOutput(pinned, NoNoise(seed), torch.tensor(schedule), latent)


def _variation_inputs() -> list[io.Input]:
    """Fresh noise, so that the seed matters."""
    return [
        fraction_input(
            "variation",
            0.0,
            "How much of the inverted noise is fresh noise of the sampler's seed: other results for other "
            "seeds, and less of the image. 0 is the inverted noise alone; try 0.1 to 0.5.",
            optional=True,
        ),
        io.Mask.Input(
            "variation_mask",
            optional=True,
            tooltip="Where the noise is fresh; without a mask everywhere. Take the edit's mask to keep the "
            "rest of the image.",
        ),
    ]


def _record_input() -> io.Input:
    """Whether the edit can be edited."""
    return io.Boolean.Input(
        "record_turn",
        default=False,
        optional=True,
        tooltip="Keep every step of the edited image, so that Next Turn can edit the result again without an "
        "inversion. Costs the memory of one inversion per run, and no time.",
    )


def _keep_inputs() -> list[io.Input]:
    """What is kept of the source, for a second edit at the price of plain sampling."""
    return [
        io.Combo.Input(
            "keep_source",
            options=list(SHELVES),
            default=RAM,
            optional=True,
            tooltip="Keep what this edit reads of the image, so that the next edit of it (another prompt, mask, "
            "guidance or seed) costs no more evaluations than plain sampling and comes out the same as without. "
            "Dropped when the model, its LoRAs or the inversion change.",
        ),
        io.Float.Input(
            "keep_gb",
            default=KEPT_GB,
            min=0.01,
            max=1024.0,
            step=0.01,
            optional=True,
            advanced=True,
            tooltip="The most that is kept, in GB, of all images together. About 2.3 for 50 steps of CPAM on SD1.5 at "
            "512 pixels, 21 on SDXL at 1024, in a card's pinned RAM up to half as much again; steps that do not fit "
            "read the image each time. The sampler node says how much was needed.",
        ),
    ]


def _variation(inversion: Inversion, share: float, seed: int, mask: Tensor | None) -> Variation | None:
    """What variation and its mask ask for; None for nothing.

    Raises:
        ValueError: a mask of another picture, or one that selects nothing.
    """
    if share <= 0:
        return None
    if mask is None:
        return Variation(share, seed)
    size = (inversion.latents.shape[-2], inversion.latents.shape[-1])
    cure = "Draw the variation_mask in Load Image's mask editor, or disconnect it to vary the whole image"
    chosen = selecting(mask, "variation_mask", cure)
    check_aspect(chosen, size, "variation_mask")
    return Variation(share, seed, resize(chosen, size, "any")[:, None])


NODES = [EditSetupNode]
