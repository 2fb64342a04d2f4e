"""The nodes that fit a photograph of any size to a model, and put the edit back into it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..attention.masks.boxes import FittedSize
from ..attention.masks.composite import FULL
from ..attention.masks.edit_masks import EditMasks
from ..attention.masks.photo import FittedPhoto, black_under_mask, fit, paste
from ..host.remarks import Kind, remark
from ..host.schemas import io
from ..host.sizes import picture_size
from .sockets import CATEGORY, EditMasksSocket, PhotoSocket

AROUND, WHOLE = "around the mask", "whole picture"
_ANY_MULTIPLE = 64
"""Suits every model: UNets halve a latent three times, and transformers take less."""


class FitPhotoNode(io.ComfyNode):
    """A photograph at the model's size."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditFitPhoto",
            display_name="Fit Photo",
            category=f"{CATEGORY}/photo",
            description="Gives the part of a photograph around the mask, or all of it, at the size that the model "
            "draws best. Edit that, and Paste into Photo puts it back: everything else keeps its very pixels.",
            search_aliases=["inpaint crop", "crop around mask", "crop and stitch", "resize for model", "any size"],
            inputs=[
                io.Image.Input("image", tooltip="The photograph, of any size, or a batch of equal size."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="What is to change, hard or soft; none, or an empty one, is the whole picture. Several "
                    "have one frame around them all.",
                ),
                io.Model.Input(
                    "model", optional=True, tooltip="The model that edits: it says the size. Or set size below."
                ),
                io.Combo.Input(
                    "area",
                    options=[AROUND, WHOLE],
                    default=AROUND,
                    tooltip="What is shown to the model. The whole picture suits small photographs and changes of the "
                    "background.",
                ),
                io.Float.Input(
                    "context",
                    default=0.5,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How much is shown around the mask on each side, as a share of the mask's own size. More "
                    "lets the edit fit the scene, less lets it have more detail.",
                ),
                *_size_inputs(),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="For VAE Encode, or for any other editor."),
                io.Mask.Output(display_name="mask", tooltip="The mask of that picture; all of it without a mask."),
                PhotoSocket.Output(display_name="photo", tooltip="For Paste into Photo."),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        area: str,
        context: float,
        zoom: float,
        size: int,
        multiple: int,
        mask: Tensor | None = None,
        model: Any = None,
    ) -> io.NodeOutput:
        wanted = FittedSize(*_sizes_of(model, size, multiple), context, zoom, area == WHOLE)
        picture, chosen, photo = fit(image, mask, wanted)
        _remark_on(photo, mask)
        return io.NodeOutput(picture, chosen, photo)


def _size_inputs() -> list[io.Input]:
    """What the model says, and what may be said in its place."""
    return [
        io.Float.Input(
            "zoom",
            default=2.0,
            min=1.0,
            max=16.0,
            step=0.1,
            tooltip="About how many times a small part is enlarged at most: else more of its surroundings is shown.",
            advanced=True,
        ),
        io.Int.Input(
            "size",
            default=0,
            min=0,
            max=8192,
            tooltip="Pixels: side of the square that has the picture's area. 0 is the model's own, such as 512 for "
            "SD1.x and 1024 for SDXL.",
            advanced=True,
        ),
        io.Int.Input(
            "multiple",
            default=0,
            min=0,
            max=256,
            tooltip="Pixels of which both sides are multiples. 0 is the model's own, such as 64 for SD1.x and 16 for "
            "Flux.",
            advanced=True,
        ),
    ]


def _sizes_of(model: Any, size: int, multiple: int) -> tuple[int, int]:
    """Side and multiple, where 0 is the model's own.

    Raises:
        ValueError: they are neither given nor known.
    """
    if size and (multiple or model is None):
        return size, multiple or _ANY_MULTIPLE
    if model is None:
        raise ValueError(
            "Connect the model that edits to Fit Photo, or set its size, such as 512 for SD1.x or 1024 for SDXL and "
            "most newer models: without both it is not known how large the picture shall be."
        )
    try:
        own, own_multiple = picture_size(model)
    except ValueError as error:
        raise ValueError(
            f"Set size and multiple of Fit Photo, such as 1024 and 16: this model's own are not known. {error}"
        ) from error
    return size or own, multiple or own_multiple


def _remark_on(photo: FittedPhoto, mask: Tensor | None) -> None:
    """Say what was fitted, and what about the mask is likely to disappoint."""
    (h, w), part = photo.size, photo.part
    remark(
        Kind.USED,
        f"{part.width}x{part.height} at ({part.left}, {part.top}) of {photo.photo.shape[2]}x{photo.photo.shape[1]}, "
        f"fitted to {w}x{h}",
    )
    if photo.mask is None:
        if mask is not None:
            remark(
                Kind.IGNORED,
                "Paint over what is to change, if that is not everything: the mask is empty, so the whole picture is "
                "fitted, and Paste into Photo replaces all its pixels.",
            )
        return
    if black_under_mask(photo):
        remark(
            Kind.DOUBTFUL,
            "Load the original photograph, and connect the mask by itself: this picture is exactly black under its "
            "mask, as ComfyUI's front ends 1.47.3 to 1.47.11 saved it, so what was there cannot be seen or kept.",
        )
    strongest = float(photo.mask.flatten(1).amax(1).min())
    if strongest < FULL:
        remark(
            Kind.DOUBTFUL,
            f"Put Threshold Mask before Fit Photo, if the edit shall show fully: the mask's strongest pixel is "
            f"{strongest:.2g}, and a soft mask says how much of the edit is seen.",
        )


class PastePhotoNode(io.ComfyNode):
    """An edit back in its photograph."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditPastePhoto",
            display_name="Paste into Photo",
            category=f"{CATEGORY}/photo",
            description="Puts an edit of Fit Photo's picture back into the full photograph, through a soft edge around "
            "the mask. Every other pixel is the photograph's own, and the node says so after counting.",
            search_aliases=["stitch", "inpaint stitch", "uncrop", "paste back", "put back"],
            inputs=[
                # First, so that it is what a bypassed node hands on; the front end finds inputs of files by name.
                io.Image.Input(
                    "edited",
                    tooltip="The edit of Fit Photo's picture, by any editor. Another size is resized.",
                ),
                PhotoSocket.Input("photo", tooltip="From Fit Photo."),
                io.Int.Input(
                    "feather",
                    default=8,
                    min=0,
                    max=256,
                    tooltip="Pixels of the fitted picture around the mask over which the edit fades into the "
                    "photograph. 8 is one cell of the latent, as far as one at the mask's edge reaches; 0 cuts "
                    "hard.",
                ),
                io.MultiType.Input(
                    "mask",
                    types=[EditMasksSocket, io.Mask],
                    optional=True,
                    tooltip="How the edit is put back, in place of the mask that was fitted: Edit Masks' masks (their "
                    "changed mask counts), or any mask of the fitted picture or of the photograph. Soft values are "
                    "shares.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image", tooltip="The full photograph, edited. Fit Photo takes it for a next edit."
                )
            ],
        )

    @classmethod
    def execute(cls, edited: Tensor, photo: FittedPhoto, feather: int, mask: Any = None) -> io.NodeOutput:
        pasted = paste(photo, edited, feather, mask.changed if isinstance(mask, EditMasks) else mask)
        if photo.mask is None and mask is None:
            remark(Kind.USED, "no mask: the whole picture is the edit's")
        else:
            remark(Kind.USED, f"changed outside the mask: {pasted.outside} pixels")
        if pasted.cut:
            remark(
                Kind.DOUBTFUL,
                "Raise context in Fit Photo, or let it take the whole picture: what may change reaches the edge of the "
                "part that was fitted, where the edit ends abruptly.",
            )
        return io.NodeOutput(pasted.image)


NODES = [FitPhotoNode, PastePhotoNode]
