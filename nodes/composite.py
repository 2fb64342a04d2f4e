"""The node that puts an edit back into the photograph."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..attention.masks.cells import as_mask
from ..attention.masks.composite import composite
from ..attention.masks.edit_masks import EditMasks
from ..host.schemas import io
from .sockets import CATEGORY, EditMasksSocket


class CompositeNode(io.ComfyNode):
    """The original's pixels outside the mask."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditComposite",
            display_name="Composite in Pixels",
            category=f"{CATEGORY}/masks",
            description="Puts the edited image over the original inside the changed mask and fades it out around it. "
            "Everything further away is the original, bit for bit: what the VAE loses and mixes never shows there.",
            search_aliases=[
                "paste back",
                "image composite masked",
                "feather mask",
                "exact pixels",
                "stitch",
                "keep background",
            ],
            inputs=[
                # First, so that it is what a bypassed node hands on; the front end finds inputs of files by name.
                io.Image.Input("edited", tooltip="The edit's result, from VAE Decode."),
                io.Image.Input("original", tooltip="The image that was encoded and inverted."),
                io.MultiType.Input(
                    "mask",
                    types=[EditMasksSocket, io.Mask],
                    tooltip="What may change: Edit Masks' masks (their changed mask counts), or any mask.",
                ),
                io.Int.Input(
                    "feather",
                    default=8,
                    min=0,
                    max=256,
                    tooltip="Pixels around the mask over which the edit fades into the original. 8 is one cell of the "
                    "latent, as far as a cell at the mask's edge reaches; 0 cuts hard.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The original's size and, outside, its pixels.")],
        )

    @classmethod
    def execute(cls, edited: Tensor, original: Tensor, mask: Any, feather: int) -> io.NodeOutput:
        chosen = mask.changed if isinstance(mask, EditMasks) else as_mask(mask, "mask")
        return io.NodeOutput(composite(original, edited, chosen, feather))


NODES = [CompositeNode]
