"""CPAM's nodes: masks for a task, the method, and the exact background."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..attention import engine
from ..attention.background import ExactBackground
from ..attention.cpam import CPAM, KEY_MASKS
from ..attention.edit_masks import TASKS, edit_masks
from ..attention.masks import RULES
from .sockets import (
    CATEGORY,
    EditMasksSocket,
    fraction_input,
    inversion_input,
    model_input,
    model_output,
    one_call_input,
)


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
            search_aliases=["mask guidance", "cpam masks", "object removal mask"],
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


class CPAMNode(io.ComfyNode):
    """CPAM."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditCPAM",
            display_name="CPAM",
            category=f"{CATEGORY}/methods",
            description="Context-Preserving Adaptive Manipulation: edits what the masks select and keeps the rest, by "
            "letting kept pixels attend to the source image and hiding the prompt from them. No caption needed.",
            search_aliases=[
                "cpam",
                "preservation adaptation",
                "localized extraction",
                "object removal",
                "recolor",
            ],
            inputs=[
                model_input(),
                inversion_input(),
                EditMasksSocket.Input("masks", tooltip="What to edit, from Edit Masks or Refine Mask."),
                io.Boolean.Input(
                    "localized",
                    default=True,
                    tooltip="Show the prompt only to pixels inside the target mask (localized extraction).",
                ),
                fraction_input(
                    "normal_share",
                    0.1,
                    "Share of layers that, at random in every step, keep normal self-attention. The paper "
                    "has 0.1, its released code 0; lower keeps the background better.",
                    advanced=True,
                ),
                fraction_input(
                    "retain_start",
                    0.06,
                    "Share of the steps before the object's look is kept (3 of 50). Later lets its shape change more.",
                    advanced=True,
                ),
                io.Int.Input(
                    "retain_layer",
                    default=-1,
                    min=-1,
                    max=69,
                    tooltip="First layer that keeps the object's look; -1 takes the released code's: 7 of 16 for SD1.x "
                    "and SD2.x, 54 of 70 for SDXL.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "key_mask",
                    options=list(KEY_MASKS),
                    default="target",
                    tooltip="Which source pixels a kept object reads: those in the target mask (as released), in the "
                    "source mask, or in both.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "mask_resize",
                    options=list(RULES),
                    default=RULES[0],
                    tooltip="How masks are brought to a layer's size: nearest as released; majority or any part of a "
                    "cell.",
                    advanced=True,
                ),
                fraction_input("end", 1.0, "Share of the steps after which CPAM stops acting.", advanced=True),
                one_call_input(),
            ],
            outputs=[model_output()],
        )

    @classmethod
    def execute(  # noqa: PLR0913, PLR0917 (one argument per input)
        cls,
        model: Any,
        inversion: Any,
        masks: Any,
        localized: bool,
        normal_share: float,
        retain_start: float,
        retain_layer: int,
        key_mask: str,
        mask_resize: str,
        end: float,
        one_call: bool,
    ) -> io.NodeOutput:
        layer = None if retain_layer < 0 else retain_layer
        control = CPAM(masks, retain_start, layer, key_mask, normal_share, localized, mask_resize, end)
        return io.NodeOutput(engine.install(model, control, inversion, packed=one_call or None))


class ExactBackgroundNode(io.ComfyNode):
    """Exact background."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditBackground",
            display_name="Exact Background",
            category=f"{CATEGORY}/masks",
            description="Keeps the image outside the changed mask as it was, up to what the VAE itself loses, by "
            "blending in the source's own trajectory at every step. Goes with any sampler and any edit.",
            search_aliases=["latent blending", "local blend", "keep background", "blended diffusion"],
            inputs=[
                model_input(),
                inversion_input(),
                EditMasksSocket.Input("masks", tooltip="What may change, from Edit Masks."),
                fraction_input(
                    "start",
                    0.0,
                    "Share of the steps after which blending begins. 0 from the start; MAG-Edit 0.7, "
                    "Prompt-to-Prompt 0.2.",
                ),
            ],
            outputs=[model_output()],
        )

    @classmethod
    def execute(cls, model: Any, inversion: Any, masks: Any, start: float) -> io.NodeOutput:
        return io.NodeOutput(engine.install(model, ExactBackground(masks.changed, start), inversion))
