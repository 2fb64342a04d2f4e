"""The three losses of Dynamic Prompt Learning against their thresholds, while it runs."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ....host.progress import progress_bar
from ....inversion.plot import HEIGHT, MARGIN, WIDTH
from .learn import Learned

COLOURS = {"at": "#c22f2f", "dj": "#2f6fc2", "bg": "#2f9a4f"}
PERIOD = 0.5
"""Seconds between two drawings, at least."""
TITLES = {"at": "attention balancing", "dj": "disjoint objects", "bg": "background leakage"}


def losses_plot(steps: Sequence[Learned], count: int) -> Image.Image:
    """Each loss at the first pass (thin) and the last pass (thick) of every step, and its threshold (dots).

    Args:
        steps: those that are over, noisy to clean. count: how many there will be.
    """
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    box = (MARGIN, 36, WIDTH - 16, HEIGHT - 32)
    draw.rectangle(box, outline="#999999")
    values = [v for step in steps for one in (*step.losses, step.bounds) for v in one.values()]
    top = max([1.0, *values])
    for share in (0.0, 0.5, 1.0):
        y = box[3] - share * (box[3] - box[1])
        draw.line((box[0], y, box[2], y), fill="#dddddd")
        draw.text((4, y - 6), f"{top * share:.2g}", fill="#555555")

    def place(number: int, value: float) -> tuple[float, float]:
        return box[0] + number * (box[2] - box[0]) / max(1, count - 1), box[3] - value * (box[3] - box[1]) / top

    for index, (name, colour) in enumerate(COLOURS.items()):
        draw.text((MARGIN + 190 * index, 10), TITLES[name], fill=colour)
        told = [(number, step) for number, step in enumerate(steps) if step.losses and name in step.losses[-1]]
        for width, which in ((1, 0), (3, -1)):
            points = [place(number, step.losses[which][name]) for number, step in told]
            if len(points) > 1:
                draw.line(points, fill=colour, width=width)
        for number, step in told:
            x, y = place(number, step.bounds[name])
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), outline=colour)
    draw.text((box[0], box[3] + 8), "0", fill="#555555")
    draw.text((box[2] - 24, box[3] + 8), str(count - 1), fill="#555555")
    return picture


def losses_picture(steps: Sequence[Learned]) -> Tensor:
    """The plot (1, h, w, 3) in 0..1 of a run that is over."""
    return torch.from_numpy(np.asarray(losses_plot(steps, len(steps)), dtype=np.float32) / 255)[None]


class LivePlot:
    """The plot as the preview of the node that runs, anew after its steps, twice a second at most."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.steps: list[Learned] = []
        self.bar = progress_bar(count)
        self.drawn = -PERIOD

    def add(self, step: Learned) -> None:
        """A step is over."""
        self.steps.append(step)
        now = time.monotonic()
        if now - self.drawn < PERIOD and len(self.steps) < self.count:
            return
        self.drawn = now
        preview = ("JPEG", losses_plot(self.steps, self.count), WIDTH)
        self.bar.update_absolute(len(self.steps) - 1, self.count, preview)
