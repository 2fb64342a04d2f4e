"""The node that turns a mask and a task into edit masks."""

from __future__ import annotations

from torch import Tensor

from ..attention.masks.edit_masks import TASKS, edit_masks
from ..host.schemas import io
from .inputs import fraction_input
from .sockets import CATEGORY, EditMasksSocket


class EditMasksNode(io.ComfyNode):
    """Masks for a task."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditMasks",
            display_name="Edit Masks",
            category=f"{CATEGORY}/masks",
            description="Says what is to be edited: from one mask of the object it makes the source and target masks "
            "that the task needs.",
            search_aliases=[
                "mask guidance",
                "cpam masks",
                "object removal mask",
                "inpaint mask",
                "erase",
                "background mask",
            ],
            inputs=[
                io.Mask.Input(
                    "mask",
                    tooltip="The object. For a new background too: mask the object that stays. To add an object or "
                    "edit a part: the region to alter. Any size, of the image's shape; one mask, or one per image.",
                ),
                io.Combo.Input(
                    "task",
                    options=list(TASKS),
                    default=TASKS[0],
                    tooltip="Replace or recolour: the object may become anything. Keep the object: its look stays, "
                    "pose and shape may change. Change the background: everything but the object. Remove: the prompt "
                    "is not used. Add, edit a part: the prompt fills exactly the region that you drew.",
                ),
                fraction_input(
                    "dilation",
                    0.1,
                    "Grows the mask, as a share of the object's size. Raise it when the new shape is larger, "
                    "or when a removed object leaves an edge or a shadow. Not used for the background, to add an "
                    "object or edit a part.",
                ),
                io.Boolean.Input("invert", default=False, tooltip="The mask selects what is not the object."),
            ],
            outputs=[
                EditMasksSocket.Output(display_name="masks", tooltip="For CPAM and Exact Background."),
                io.Mask.Output(display_name="source mask", tooltip="What is edited in the source image."),
                io.Mask.Output(display_name="target mask", tooltip="Where the edit appears; empty for a removal."),
                io.Mask.Output(display_name="changed mask", tooltip="Where pixels may change at all."),
            ],
        )

    @classmethod
    def execute(cls, mask: Tensor, task: str, dilation: float, invert: bool) -> io.NodeOutput:
        masks = edit_masks(mask, task, dilation, invert)
        return io.NodeOutput(masks, masks.source.float(), masks.target.float(), masks.changed.float())


NODES = [EditMasksNode]
