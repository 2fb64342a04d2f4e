"""A line plot as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

WIDTH, HEIGHT, MARGIN = 640, 360, 56


def line_plot(values: Sequence[float], title: str, note: str, marks: Sequence[int] = ()) -> Tensor:
    """A line plot (1, h, w, 3) in 0..1 of values over steps, from 0 or the least of them; upright lines at marks."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    bottom = min(*values, 0.0)
    top = max(*values, bottom + 1e-12)
    box = (MARGIN, 36, WIDTH - 16, HEIGHT - 32)
    draw.rectangle(box, outline="#999999")
    draw.text((MARGIN, 10), f"{title}: {note}", fill="black")
    for share in (0.0, 0.5, 1.0):
        y = box[3] - share * (box[3] - box[1])
        draw.line((box[0], y, box[2], y), fill="#dddddd")
        draw.text((4, y - 6), f"{bottom + (top - bottom) * share:.2g}", fill="#555555")
    scale, height = (box[2] - box[0]) / max(1, len(values) - 1), (box[3] - box[1]) / (top - bottom)
    for mark in marks:
        draw.line((box[0] + mark * scale, box[1], box[0] + mark * scale, box[3]), fill="#eeeeee")
    points = [(box[0] + i * scale, box[3] - (v - bottom) * height) for i, v in enumerate(values)]
    if len(points) > 1:
        draw.line(points, fill="#c22f2f", width=2)
    draw.text((box[0], box[3] + 8), "0", fill="#555555")
    draw.text((box[2] - 24, box[3] + 8), str(len(values) - 1), fill="#555555")
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]
