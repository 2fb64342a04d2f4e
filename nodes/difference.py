"""The node that draws a mask from what two prompts disagree on."""

from __future__ import annotations

from typing import Any

from ..attention.masks.difference import diff_mask
from ..attention.pictures.heat import heat_colours
from ..host.schemas import io
from .sockets import CATEGORY


def _settings() -> list[io.Input]:
    """How the difference is made and cut."""
    return [
        io.Float.Input(
            "strength",
            default=0.5,
            min=0.05,
            max=0.95,
            step=0.05,
            tooltip="How far the image is noised. More sees larger things, less sees details.",
        ),
        io.Int.Input(
            "maps", default=10, min=1, max=100, tooltip="Noises that are averaged; each costs two evaluations."
        ),
        io.Float.Input(
            "threshold",
            default=0.5,
            min=0.01,
            max=0.99,
            step=0.01,
            tooltip="How different a pixel must be, of the largest difference. Lower selects more.",
        ),
        io.Float.Input(
            "clamp",
            default=3.0,
            min=1.0,
            max=20.0,
            step=0.5,
            tooltip="Differences above this many times the mean count as that much, so that one spot does not "
            "set the scale.",
            advanced=True,
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="Seed of the noises; the same seed gives the same mask.",
        ),
    ]


class DiffMaskNode(io.ComfyNode):
    """A mask from two prompts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditDiffMask",
            display_name="Difference Mask (DiffEdit)",
            category=f"{CATEGORY}/masks",
            description="Proposes a mask without drawing: noises the image, asks the model what it sees with either "
            "prompt, and selects where the answers differ.",
            search_aliases=[
                "diffedit",
                "automatic mask",
                "mask proposal",
                "text to mask",
                "noise difference",
                "mask from text",
                "segment change",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model without edits."),
                io.Latent.Input("latent", tooltip="The image, from VAE Encode."),
                io.Conditioning.Input("target", tooltip="What the image shall show."),
                io.Conditioning.Input(
                    "reference", tooltip="What it shows now, said in the same way; or the empty prompt."
                ),
                *_settings(),
            ],
            outputs=[
                io.Mask.Output(display_name="mask", tooltip="The proposal, for Edit Masks or the mask editor."),
                io.Image.Output(display_name="heat", tooltip="How much the prompts differ, dark to bright."),
            ],
        )

    @classmethod
    def execute(  # noqa: PLR0913, PLR0917 (one argument per input)
        cls,
        model: Any,
        latent: dict[str, Any],
        target: list[Any],
        reference: list[Any],
        strength: float,
        maps: int,
        threshold: float,
        clamp: float,
        seed: int,
    ) -> io.NodeOutput:
        found = diff_mask(
            model,
            latent,
            target,
            reference,
            strength=strength,
            maps=maps,
            threshold=threshold,
            clamp=clamp,
            seed=seed,
        )
        return io.NodeOutput(found.mask.float(), heat_colours(found.heat))


NODES = [DiffMaskNode]
