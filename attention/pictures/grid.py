"""A grid of labelled pictures, to compare settings at a glance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

LABEL_HEIGHT = 22
"""Height of a label in pixels."""


def comparison_grid(pictures: Sequence[Tensor], labels: Sequence[str], columns: int) -> Tensor:
    """Pictures with a label above each, row by row.

    Args:
        pictures: (H, W, 3) in 0..1 each; smaller ones are enlarged to the first one's size.
        labels: one for each picture.
        columns: pictures in a row; 0 puts all into one row.

    Returns:
        (1, h, w, 3) in 0..1 on white.

    Raises:
        ValueError: no pictures, or another number of labels.
    """
    if not pictures or len(pictures) != len(labels):
        raise ValueError(
            f"The grid has {len(pictures)} pictures and {len(labels)} labels; it needs one label for each."
        )
    height, width = pictures[0].shape[:2]
    columns = columns or len(pictures)
    rows = -(-len(pictures) // columns)
    canvas = torch.ones(rows * (height + LABEL_HEIGHT), columns * width, 3)
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        top, left = (i // columns) * (height + LABEL_HEIGHT), (i % columns) * width
        canvas[top : top + LABEL_HEIGHT, left : left + width] = _label(label, width)
        canvas[top + LABEL_HEIGHT : top + LABEL_HEIGHT + height, left : left + width] = _fit(picture, height, width)
    return canvas[None]


def _fit(picture: Tensor, height: int, width: int) -> Tensor:
    """A picture (h, w, C) as (height, width, 3) on the CPU."""
    x = picture[..., :3].float().cpu()
    if x.shape[:2] == (height, width):
        return x
    return F.interpolate(x.movedim(-1, 0)[None], (height, width), mode="bilinear")[0].movedim(0, -1)


def _label(text: str, width: int) -> Tensor:
    image = Image.new("RGB", (width, LABEL_HEIGHT), "white")
    ImageDraw.Draw(image).text((4, 5), text, fill="black")
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)
