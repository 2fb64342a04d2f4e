"""The node that fits any editor's result to the photograph and puts back only what was edited."""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention.masks.cells import distance, shares
from ..attention.masks.composite import FULL, put_on, soft_edge
from ..attention.masks.registration import Registered, lay_on_photo
from ..host.remarks import Kind, remark
from ..host.schemas import io
from .sockets import CATEGORY

_MOST = 0.5
"""Share of the picture from which on a mask by the difference says that more than an object has changed."""


class FitEditNode(io.ComfyNode):
    """Another editor's picture, on the photograph's own pixels."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditFitEdit",
            display_name="Fit Edit to Photo",
            category=f"{CATEGORY}/photo",
            description="Fits the result of any editor (Qwen-Image-Edit, Kontext, Klein, a web service) to the "
            "photograph: finds how far it was moved and scaled, matches its colours on what was not edited, and puts "
            "back only what was. Every other pixel is the photograph's own, and the node says so after counting.",
            search_aliases=[
                "align images",
                "registration",
                "color match",
                "keep background",
                "pixel shift",
                "qwen image edit offset",
                "kontext zoom",
                "difference mask",
            ],
            inputs=[
                # First, so that it is what a bypassed node hands on; the front end finds inputs of files by name.
                io.Image.Input("edited", tooltip="The editor's result, of any size."),
                io.Image.Input("photo", tooltip="The photograph that was edited."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="What was edited, on the photograph; grey values are shares of the edit. Without a mask it "
                    "is found by the difference.",
                ),
                *_settings(),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image", tooltip="The photograph, edited. Connect it as photo for a next edit."
                ),
                io.Mask.Output(display_name="mask", tooltip="What was put back, with its soft edge."),
                io.Image.Output(display_name="fitted", tooltip="The whole edited picture, moved and coloured to fit."),
            ],
        )

    @classmethod
    def execute(
        cls,
        edited: Tensor,
        photo: Tensor,
        match_colours: bool,
        threshold: float,
        grow: int,
        feather: int,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        size = (photo.shape[1], photo.shape[2])
        given = None if mask is None else _shares_on(mask, size)
        known = None if given is None else given > 0
        found = lay_on_photo(photo.cpu(), edited.cpu(), known, match_colours, threshold, grow)
        kept = found.mask if given is None else torch.where(found.mask, given.expand(found.mask.shape), 0.0)
        weight = torch.minimum(soft_edge(kept, feather), _to_border(found.inside, feather))
        image = put_on(photo.cpu(), found.image, weight, (0, 0))
        _tell(found, image, photo.cpu(), weight, known is not None)
        return io.NodeOutput(image, weight, found.image)


def _settings() -> list[io.Input]:
    return [
        io.Boolean.Input(
            "match_colours",
            default=True,
            tooltip="Give each channel the gain and offset that suit the photograph's, on what was not edited. Switch "
            "it off if the edit is one of colours over the whole picture.",
        ),
        io.Float.Input(
            "threshold",
            default=0.1,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Without a mask: from which difference on, in 0..1 and over five pixels in the mean, a pixel was "
            "edited. Less finds shadows too; more leaves out what the editor has only redrawn.",
        ),
        io.Int.Input(
            "grow",
            default=8,
            min=0,
            max=512,
            tooltip="Without a mask: pixels around what differs that count as edited too.",
        ),
        io.Int.Input(
            "feather",
            default=8,
            min=0,
            max=256,
            tooltip="Pixels around what was edited over which the edit fades into the photograph; 0 cuts hard.",
        ),
    ]


def _shares_on(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A MASK of the photograph's shape at its size.

    Raises:
        ValueError: a mask of another shape, or one that selects nothing.
    """
    found = shares(mask, "mask of Fit Edit to Photo")
    if not bool((found.flatten(1).amax(1) > 0).all()):
        raise ValueError(
            "Paint what was edited, or disconnect the mask to have it found by the difference: the mask of Fit Edit "
            "to Photo selects no pixel."
        )
    if tuple(found.shape[1:]) == size:
        return found
    h, w = found.shape[1:]
    if abs(h * size[1] - w * size[0]) > max(size) * 2:
        raise ValueError(
            f"Connect a mask of the photograph: it is {w}x{h}, of another shape than the photograph's "
            f"{size[1]}x{size[0]}."
        )
    return torch.nn.functional.interpolate(found[:, None], size, mode="bilinear", antialias=True)[:, 0].clamp(0, 1)


def _to_border(inside: Tensor, feather: int) -> Tensor:
    """How much of an edited picture (B, H, W) is seen by its own border: none at it, all `feather` pixels away."""
    if bool(inside.all()):
        return torch.ones(inside.shape)
    return (distance(~inside) / (feather + 1)).clamp(0, 1)


def _tell(found: Registered, image: Tensor, photo: Tensor, weight: Tensor, known: bool) -> None:
    """Say where the picture was, how much of it was put back, and what is likely to disappoint."""
    height, width = photo.shape[1:3]
    places = [
        f"scaled by {one.scale[1]:.3f} x {one.scale[0]:.3f} and moved by {one.shift[1] * width:.1f} right, "
        f"{one.shift[0] * height:.1f} down"
        for one in found.found
    ]
    outside = int(((image != photo[..., : image.shape[-1]]).any(-1) & (weight == 0)).sum())
    put_back = float((weight > 0).float().mean())
    remark(
        Kind.USED,
        f"{'; '.join(places)}. Put back: {put_back:.1%} of the photograph; changed outside the mask: {outside} pixels",
    )
    if not known and put_back > _MOST:
        remark(
            Kind.DOUBTFUL,
            f"Connect a mask of what was edited, or raise threshold: {put_back:.0%} of the picture differ from the "
            "photograph, so that hardly any of its own pixels are left.",
        )
    if not known and put_back == 0:
        remark(
            Kind.DOUBTFUL,
            "Lower threshold, or connect a mask of what was edited: nothing differs enough, so the photograph is "
            "handed on as it is.",
        )
    if known and float(weight.max()) < FULL:
        remark(
            Kind.DOUBTFUL,
            f"Put Threshold Mask before the mask, if the edit shall show fully: its strongest pixel is "
            f"{float(weight.max()):.2g}, and grey values are shares of the edit.",
        )


NODES = [FitEditNode]
