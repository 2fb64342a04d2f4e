"""The nodes that refine a target mask during a run, and show it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from comfy_api.latest import ui
from torch import Tensor

from ..attention.maps.recorder import SIZES
from ..attention.masks.edit_masks import EditMasks
from ..attention.masks.refinement import RefinedMasks, make_refinement
from ..attention.pictures.heat import enlarged, label_grid
from ..host.schemas import io
from .inputs import fraction_input
from .sockets import ALL_SIZES, CATEGORY, MAP_SIZES, NO_SIZE, SELF_SIZES, EditMasksSocket, PromptSocket, RefinedSocket

TILE = 128
"""Pixels: the height of one mask in a picture of many."""


class RefineMaskNode(io.ComfyNode):
    """A target mask that follows the drawing."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditRefineMask",
            display_name="Refine Mask",
            category=f"{CATEGORY}/masks",
            description="Lets CPAM's target mask follow the shape that the prompt takes while it is drawn: after some "
            "steps it is what the prompt's words attend to. For masks that are too large, or of another shape.",
            search_aliases=["mask refinement", "cpam mask", "attention mask", "automatic mask"],
            inputs=[
                EditMasksSocket.Input("masks", tooltip="From Edit Masks; its target mask holds in the first steps."),
                PromptSocket.Input(
                    "prompt",
                    tooltip="The edit's prompt from Prompt with Words, whose conditioning is the sampler's positive.",
                ),
                io.String.Input(
                    "words",
                    default="",
                    tooltip="The words of the new object, or several phrases separated by commas. Empty takes the "
                    "whole prompt.",
                ),
                fraction_input(
                    "start",
                    0.1,
                    "Share of the steps in which the given mask holds, 0.1 is 5 of 50. Later gives the shape "
                    "more time to form inside it.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.45,
                    min=0.01,
                    max=0.99,
                    step=0.01,
                    tooltip="How hot a pixel of the words' map, stretched to 0..1, must be. Lower selects more.",
                ),
                *_map_inputs(),
            ],
            outputs=[
                EditMasksSocket.Output(display_name="masks", tooltip="For CPAM."),
                RefinedSocket.Output(display_name="refined", tooltip="What they become, for Refined Masks."),
            ],
        )

    @classmethod
    def execute(  # noqa: PLR0913, PLR0917 (one argument per input)
        cls,
        masks: EditMasks,
        prompt: Any,
        words: str,
        start: float,
        threshold: float,
        map_size: str = ALL_SIZES,
        self_maps: str = NO_SIZE,
        reach: float = 1.0,
        released_rule: bool = False,
    ) -> io.NodeOutput:
        scales = () if map_size == ALL_SIZES else (SIZES[map_size],)
        own = SIZES.get(self_maps)
        refinement = make_refinement(prompt, words, start, threshold, scales, own, reach, released_rule)
        return io.NodeOutput(masks.refined(refinement), refinement.masks)


def _map_inputs() -> list[io.Input]:
    """Which maps the mask is made of, and how far it may go."""
    return [
        io.Combo.Input(
            "map_size",
            options=MAP_SIZES,
            default=ALL_SIZES,
            tooltip="Which layers' word maps, by the side of their maps as a share of the latent's; all is "
            "the paper's.",
            advanced=True,
        ),
        io.Combo.Input(
            "self_maps",
            options=SELF_SIZES,
            default=NO_SIZE,
            tooltip="Sharpen the word maps by what pixels look alike: they then fill the object and follow "
            "its edges. Half (32x32 for 512 pixels) is usual; none is the paper's.",
            advanced=True,
        ),
        fraction_input(
            "reach",
            1.0,
            "How far the refined mask may go beyond the given one, as a share of its size as dilation is: 0 "
            "keeps it inside; 1, the paper's, lets it be anywhere.",
            advanced=True,
        ),
        io.Boolean.Input(
            "released_rule",
            default=False,
            optional=True,
            tooltip="Maps as CPAM's released code has them: the first mask is of the last layer's map alone, maps are "
            "divided by their largest single value, and a mask acts already in the last layer of its own step. For "
            "comparisons.",
            advanced=True,
        ),
    ]


class RefinedMasksNode(io.ComfyNode):
    """The masks of a run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditRefinedMasks",
            display_name="Refined Masks",
            category=f"{CATEGORY}/masks",
            description="Shows the target mask after every step of an edit with Refine Mask, and gives the last one.",
            search_aliases=["show mask refinement", "mask per step"],
            is_output_node=True,
            inputs=[
                RefinedSocket.Input("refined", tooltip="From Refine Mask."),
                io.AnyType.Input(
                    "after",
                    tooltip="The sampler's latent, or the image. It only says that this node waits for the run.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="steps", tooltip="The masks of all steps; a picture for each image."),
                io.Mask.Output(display_name="mask", tooltip="The last one, in the image's size."),
            ],
        )

    @classmethod
    def execute(cls, refined: RefinedMasks, after: Any) -> io.NodeOutput:
        run = refined.of(after)
        found = run.by_step
        mask = F.interpolate(found[max(found)][:, None].float(), scale_factor=run.cell, mode="nearest")[:, 0]
        picture = torch.stack([_grid({step: m[image] for step, m in found.items()}) for image in range(len(mask))])
        return io.NodeOutput(picture, mask, ui=ui.PreviewImage(picture, cls=cls))


def _grid(by_step: dict[int, Tensor]) -> Tensor:
    """Masks (h, w) of one image by step as a picture (H, W, 3), each under its step."""
    tiles = {f"after step {step + 1}": mask.float()[..., None].expand(-1, -1, 3) for step, mask in by_step.items()}
    return label_grid(
        {label: enlarged(tile, (TILE, TILE * tile.shape[1] // tile.shape[0])) for label, tile in tiles.items()}
    )


NODES = [RefineMaskNode, RefinedMasksNode]
