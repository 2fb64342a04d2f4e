"""The node of CPAM."""

from __future__ import annotations

from typing import Any

from ..attention.masks.cells import RESIZE_RULES
from ..attention.methods.cpam import CPAM, KEY_MASKS
from ..host.schemas import io
from .inputs import fraction_input, inversion_input, model_input, model_output, one_call_input, put
from .sockets import CATEGORY, EditMasksSocket


class CPAMNode(io.ComfyNode):
    """CPAM."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditCPAM",
            display_name="Edit Object (CPAM)",
            category=f"{CATEGORY}/methods",
            description="Context-Preserving Adaptive Manipulation: edits what the masks select and keeps the rest, by "
            "letting kept pixels attend to the source image and hiding the prompt from them. No caption needed.",
            search_aliases=[
                "cpam",
                "preservation adaptation",
                "localized extraction",
                "object removal",
                "recolor",
                "edit photo",
                "inpaint",
                "replace object",
                "recolour",
                "remove object",
                "erase",
                "change background",
                "add object",
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
                *_published_inputs(),
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
        return put(model, control, inversion, one_call)


def _published_inputs() -> list[io.Input]:
    """What the paper and its released code leave open or set differently."""
    return [
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
            options=list(RESIZE_RULES),
            default=RESIZE_RULES[0],
            tooltip="How masks are brought to a layer's size: nearest as released; majority or any part of a cell.",
            advanced=True,
        ),
        fraction_input("end", 1.0, "Share of the steps after which CPAM stops acting.", advanced=True),
    ]


NODES = [CPAMNode]
