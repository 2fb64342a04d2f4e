"""Nodes that show recorded attention maps."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import ui
from torch import Tensor

from ..attention.maps.heat import HeatOptions, heat_map, named, phrases
from ..attention.maps.segments import find_segments, segment_numbers
from ..attention.pictures.heat import heat_grids
from ..host.schemas import io
from .inputs import fraction_input, maps_inputs, sharpen_input, smoothing_input
from .sockets import CATEGORY


class MapViewerNode(io.ComfyNode):
    """Look at attention."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditMapViewer",
            display_name="Attention Map Viewer",
            category=f"{CATEGORY}/attention maps",
            description="Shows for each word of the prompt where the model looks for it, as a heat map over the image.",
            search_aliases=["show attention", "heat map", "daam", "visualize attention", "attention overlay"],
            is_output_node=True,
            inputs=[
                *maps_inputs(),
                io.Image.Input("image", tooltip="What the maps are laid over: the source image, or the result."),
                io.String.Input(
                    "words",
                    default="",
                    tooltip="Words or phrases to show, separated by commas; empty shows every word.",
                ),
                io.Float.Input(
                    "opacity",
                    default=0.6,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much the heat map covers the image.",
                ),
                io.Boolean.Input(
                    "common_scale",
                    default=False,
                    tooltip="On: one scale for all words, so that strong and weak words show. Off: each word's map "
                    "fills the colours by itself.",
                ),
                smoothing_input(),
                sharpen_input(),
            ],
            outputs=[io.Image.Output(display_name="maps", tooltip="A labelled grid, one for each image of a batch.")],
        )

    @classmethod
    def execute(
        cls,
        maps: Any,
        after: Any,
        image: Tensor,
        words: str,
        opacity: float,
        common_scale: bool,
        smoothing: float,
        sharpen: int,
    ) -> io.NodeOutput:
        options = HeatOptions(smoothing, sharpen)
        found = named(maps.prompt, words)
        heats = {word: heat_map(maps.of(after), positions, options) for word, positions in found.items()}
        picture = heat_grids(image, heats, opacity, common_scale)
        return io.NodeOutput(picture, ui=ui.PreviewImage(picture, cls=cls))


class SelfMapsNode(io.ComfyNode):
    """Look at self-attention."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditSelfMaps",
            display_name="Self-Attention Clusters",
            category=f"{CATEGORY}/attention maps",
            description="Cuts the image into regions whose pixels look at the same places, names them by words of the "
            "prompt, and says which are background.",
            search_aliases=["self attention", "segmentation", "k-means", "pca", "background mask", "dpl", "segment"],
            is_output_node=True,
            inputs=[
                *maps_inputs(),
                io.Int.Input("clusters", default=5, min=2, max=20, tooltip="How many regions (the paper's V = 5)."),
                io.String.Input(
                    "words",
                    default="",
                    tooltip="Nouns of the prompt, separated by commas, to name the regions by. Regions that fit none "
                    "are background.",
                ),
                fraction_input(
                    "least_agreement", 0.2, "A region whose mean map of every word is below this is background."
                ),
                io.String.Input(
                    "chosen",
                    default="1",
                    tooltip="Regions that the mask selects, separated by commas: numbers, 1 is the largest, or words "
                    "of those above.",
                ),
                io.Int.Input(
                    "clustering_seed", default=1, min=0, max=0xFFFFFFFF, tooltip="Of its random starts.", advanced=True
                ),
            ],
            outputs=[
                io.Image.Output(display_name="clusters", tooltip="The regions in colours, with their numbers."),
                io.Image.Output(
                    display_name="components",
                    tooltip="First three principal components of the self-attention map as red, green and blue.",
                ),
                io.Mask.Output(display_name="chosen mask", tooltip="The chosen regions."),
                io.Mask.Output(
                    display_name="background mask", tooltip="Regions that fit no word; empty without words."
                ),
                io.String.Output(display_name="report", tooltip="Number, word and share of the image of each region."),
            ],
        )

    @classmethod
    def execute(
        cls,
        maps: Any,
        after: Any,
        clusters: int,
        words: str,
        least_agreement: float,
        chosen: str,
        clustering_seed: int,
    ) -> io.NodeOutput:
        found = named(maps.prompt, words) if phrases(words) else {}
        segments = find_segments(maps.of(after), clusters, found, least_agreement, clustering_seed)
        picture = torch.stack([one.picture() for one in segments])
        selected = [one.mask(segment_numbers(chosen, clusters, one.words)) for one in segments]
        return io.NodeOutput(
            picture,
            torch.stack([one.components() for one in segments]),
            torch.stack(selected).float(),
            torch.stack([one.background() for one in segments]).float(),
            "\n\n".join(one.report() for one in segments),
            ui=ui.PreviewImage(picture, cls=cls),
        )


NODES = [MapViewerNode, SelfMapsNode]
