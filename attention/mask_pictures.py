"""Pictures of masks that change from step to step."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

TILE, LINE, GAP = 128, 18, 6
"""Pixels: the longer side of one mask, the line above it, and the space between."""


def step_grids(by_step: Mapping[int, Tensor]) -> Tensor:
    """The masks of a run in a nearly square grid for each image, each under its step.

    Args:
        by_step: masks (B, h, w) bool by step, counted from 0.

    Returns:
        (B, H, W, 3) in 0..1.
    """
    batch = len(next(iter(by_step.values())))
    return torch.stack([_grid({step: mask[item] for step, mask in by_step.items()}) for item in range(batch)])


def _grid(masks: Mapping[int, Tensor]) -> Tensor:
    height, width = next(iter(masks.values())).shape
    scale = TILE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    across = math.ceil(math.sqrt(len(masks)))
    down = math.ceil(len(masks) / across)
    step_x, step_y = size[0] + GAP, size[1] + LINE + GAP
    sheet = Image.new("RGB", (across * step_x + GAP, down * step_y + GAP), "#808080")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(LINE * 0.7)
    for place, (step, mask) in enumerate(masks.items()):
        left, top = GAP + place % across * step_x, GAP + place // across * step_y
        pen.text((left, top), f"after step {step + 1}", fill="white", font=font)
        picture = Image.fromarray(mask.cpu().numpy().astype(np.uint8) * 255)
        sheet.paste(picture.resize(size, Image.Resampling.NEAREST), (left, top + LINE))
    return torch.from_numpy(np.asarray(sheet, dtype=np.float32) / 255)
