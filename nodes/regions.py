"""Nodes that give parts of the image prompts of their own."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..attention.methods.regions import ELSEWHERE, RegionPrompts, make_region
from ..host.schemas import io
from .inputs import model_output, put
from .sockets import CATEGORY, RegionsSocket


class RegionNode(io.ComfyNode):
    """A place and its prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditRegion",
            display_name="Region",
            category=f"{CATEGORY}/regions",
            description="Says what one part of the image shall show. Chain as many as you like and connect the last "
            "one to Region Prompts.",
            search_aliases=["regional prompt", "area prompt", "attention couple", "mask prompt"],
            inputs=[
                io.Mask.Input(
                    "mask", tooltip="The part of the image, of any size but the image's shape; one, or one per image."
                ),
                io.Conditioning.Input(
                    "prompt", tooltip="What this part shall show, from CLIP Text Encode; of any length."
                ),
                RegionsSocket.Input(
                    "regions", optional=True, tooltip="Regions before this one. Where they overlap, this one counts."
                ),
            ],
            outputs=[
                RegionsSocket.Output(display_name="regions", tooltip="For another Region, or for Region Prompts.")
            ],
        )

    @classmethod
    def execute(cls, mask: Tensor, prompt: list[Any], regions: tuple[Any, ...] = ()) -> io.NodeOutput:
        return io.NodeOutput((*regions, make_region(mask, prompt)))


class RegionPromptsNode(io.ComfyNode):
    """Prompts by region."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditRegionPrompts",
            display_name="Region Prompts",
            category=f"{CATEGORY}/regions",
            description="Lets every region of the image read its own prompt only, in a plain generation or in an edit "
            "of a photograph. Self-attention joins the regions into one picture.",
            search_aliases=[
                "regional prompting",
                "multi-text guided synthesis",
                "attention couple",
                "cpam regions",
                "several prompts",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model to draw with. To edit a photograph, put CPAM on it too."),
                RegionsSocket.Input("regions", tooltip="From the last Region."),
                io.Combo.Input(
                    "elsewhere",
                    options=list(ELSEWHERE),
                    default=ELSEWHERE[0],
                    tooltip="What pixels in no region read: the negative prompt, so that guidance does nothing there "
                    "(the paper's), or the sampler's positive prompt.",
                ),
            ],
            outputs=[model_output("a sampler, or CPAM")],
        )

    @classmethod
    def execute(cls, model: Any, regions: tuple[Any, ...], elsewhere: str) -> io.NodeOutput:
        return put(model, RegionPrompts(regions, elsewhere))


NODES = [RegionNode, RegionPromptsNode]
