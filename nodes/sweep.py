"""Nodes that compare settings: one run per value, and a labelled grid of what came out."""

from __future__ import annotations

from torch import Tensor

from ..attention.pictures.grid import comparison_grid
from ..attention.words.lines import split_words
from ..host.schemas import io
from .sockets import CATEGORY


def _numbers(values: list[str]) -> list[float]:
    try:
        return [float(value) for value in values]
    except ValueError:
        return []


class SweepNode(io.ComfyNode):
    """A list of values."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditSweep",
            display_name="Sweep",
            category=f"{CATEGORY}/compare",
            description="Runs everything behind it once for each of its values. Connect one of its outputs to the "
            "setting to be tried, and collect the images in Comparison Grid.",
            search_aliases=["xy plot", "parameter sweep", "grid search", "compare settings", "layer study", "compare"],
            inputs=[
                io.String.Input(
                    "values",
                    default="0, 0.4, 0.8",
                    tooltip="Values with commas between them: numbers, or texts such as layer ranges (2-12, 3-13).",
                ),
            ],
            outputs=[
                io.Float.Output(
                    display_name="number", is_output_list=True, tooltip="The values as numbers, for settings that are."
                ),
                io.String.Output(
                    display_name="text", is_output_list=True, tooltip="The values as texts, for labels and ranges."
                ),
            ],
        )

    @classmethod
    def execute(cls, values: str) -> io.NodeOutput:
        found = split_words(values)
        if not found:
            raise ValueError("Sweep has no values. Write some with commas between them, such as 0, 0.4, 0.8.")
        return io.NodeOutput(_numbers(found), found)


class GridNode(io.ComfyNode):
    """A labelled grid."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditGrid",
            display_name="Comparison Grid",
            category=f"{CATEGORY}/compare",
            description="Puts the images of all runs into one picture, each with its value above it.",
            search_aliases=["image grid", "xy plot grid", "contact sheet", "compare images"],
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="The images of all runs."),
                io.String.Input("labels", force_input=True, tooltip="A label for each run: text of Sweep."),
                io.String.Input(
                    "title", default="", tooltip="Put in front of every label, such as the setting's name."
                ),
                io.Int.Input("columns", default=0, min=0, max=64, tooltip="Images in a row; 0 puts all into one row."),
            ],
            outputs=[io.Image.Output(display_name="grid", tooltip="One picture with all of them.")],
        )

    @classmethod
    def execute(cls, images: list[Tensor], labels: list[str], title: list[str], columns: list[int]) -> io.NodeOutput:
        pictures = [picture for batch in images for picture in batch]
        share = len(pictures) // len(labels) if labels and len(pictures) % len(labels) == 0 else 1
        named = [f"{title[0]} {label}".strip() for label in labels for _ in range(share)]
        return io.NodeOutput(comparison_grid(pictures, named, columns[0]))


NODES = [SweepNode, GridNode]
