"""Pictures of attention: heat maps over an image, clusters and principal components. Images are (H, W, 3) in 0..1."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

HEAT = ((0.0, 0.0, 0.1), (0.3, 0.05, 0.5), (0.75, 0.15, 0.4), (0.97, 0.5, 0.1), (1.0, 1.0, 0.6))
"""Colours of heat 0 to 1, evenly spaced, darker to brighter."""
_PAPER, _INK, _GAP = (255, 255, 255), (20, 20, 20), 8
_LEAST = 256
"""Tiles with a shorter longest side are enlarged to it."""


def heat_colours(heat: Tensor) -> Tensor:
    """Heat (..., H, W) in 0..1 as colours (..., H, W, 3)."""
    table = torch.tensor(HEAT)
    place = heat.clamp(0, 1) * (len(HEAT) - 1)
    left = place.floor().clamp(max=len(HEAT) - 2).long()
    return torch.lerp(table[left], table[left + 1], (place - left)[..., None])


def overlay(image: Tensor, heat: Tensor, opacity: float) -> Tensor:
    """A heat map (h, w) in 0..1 over an image (H, W, 3)."""
    size = (image.shape[0], image.shape[1])
    fitted = F.interpolate(heat[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
    return torch.lerp(image[..., :3].float().cpu(), heat_colours(fitted), opacity)


def distinct_colours(count: int) -> Tensor:
    """(count, 3) colours that are told apart easily: hues by the golden ratio at two brightnesses."""
    hues = torch.arange(count) * 0.618034 % 1
    channel = ((hues[:, None] * 6 + torch.tensor([0.0, 4.0, 2.0])) % 6 - 3).abs() - 1
    bright = torch.where(torch.arange(count) % 2 == 0, 1.0, 0.7)
    return channel.clamp(0, 1) * 0.75 * bright[:, None] + 0.2


def enlarged(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """Cells (h, w, 3) as squares of a picture of another size."""
    return F.interpolate(picture.movedim(-1, 0)[None], size=size, mode="nearest")[0].movedim(0, -1)


def label_grid(tiles: Mapping[str, Tensor]) -> Tensor:
    """Pictures (H, W, 3) of one size in a nearly square grid, each under its label."""
    height, width = next(iter(tiles.values())).shape[:2]
    scale = max(1, math.ceil(_LEAST / max(height, width)))
    size, line = (width * scale, height * scale), max(20, max(height, width) * scale // 14)
    across = math.ceil(math.sqrt(len(tiles)))
    step = (size[0] + _GAP, size[1] + line + _GAP)
    whole = (across * step[0] + _GAP, math.ceil(len(tiles) / across) * step[1] + _GAP)
    sheet = Image.new("RGB", whole, _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(line * 0.7)
    for place, (label, tile) in enumerate(tiles.items()):
        left, top = _GAP + place % across * step[0], _GAP + place // across * step[1]
        pen.text((left, top), label, fill=_INK, font=font)
        sheet.paste(_picture(tile).resize(size, Image.Resampling.BILINEAR), (left, top + line))
    return torch.from_numpy(np.array(sheet, dtype=np.float32) / 255)


def heat_grids(images: Tensor, heats: Mapping[str, Tensor], opacity: float, common: bool) -> Tensor:
    """One grid for each image of a batch, each word's heat map over the image.

    Args:
        images: (B, H, W, 3) or one for all.
        heats: maps (B, h, w) by word, of any scale.
        opacity: of the maps, 0..1.
        common: stretch all maps of an image by the same scale.

    Returns:
        (B, h', w', 3).

    Raises:
        ValueError: no words, or as many images as do not fit the maps.
    """
    if not heats:
        raise ValueError("There is no word to show: the prompt is empty.")
    stacked = torch.stack(list(heats.values()), dim=1)
    if images.shape[0] not in (1, len(stacked)):
        raise ValueError(f"There are {images.shape[0]} images and maps of {len(stacked)}. Give one, or as many.")
    over = (1, 2, 3) if common else (2, 3)
    least, most = stacked.amin(over, keepdim=True), stacked.amax(over, keepdim=True)
    stacked = (stacked - least) / (most - least).clamp(min=1e-12)
    grids = []
    for image, maps in zip(images.expand(len(stacked), -1, -1, -1), stacked, strict=True):
        tiles = {word: overlay(image, heat, opacity) for word, heat in zip(heats, maps, strict=True)}
        grids.append(label_grid(tiles))
    return torch.stack(grids)


def cluster_picture(labels: Tensor, size: tuple[int, int], lines: Sequence[str]) -> Tensor:
    """Clusters (h, w) in colours at a size (H, W), with a legend that has a line for each cluster."""
    colours = distinct_colours(len(lines))
    scale = max(1, math.ceil(_LEAST / max(size)))
    height, width = size[0] * scale, size[1] * scale
    line = max(18, height // 20)
    sheet = Image.new("RGB", (width, height + len(lines) * line), _PAPER)
    sheet.paste(_picture(enlarged(colours[labels], (height, width))), (0, 0))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(line * 0.7)
    for number, text in enumerate(lines):
        top = height + number * line
        fill = tuple(round(255 * float(c)) for c in colours[number])
        pen.rectangle((2, top + 2, line - 2, top + line - 2), fill=fill)
        pen.text((line + 4, top), text, fill=_INK, font=font)
    return torch.from_numpy(np.array(sheet, dtype=np.float32) / 255)


def _picture(image: Tensor) -> Image.Image:
    return Image.fromarray((image.clamp(0, 1) * 255).round().to(torch.uint8).numpy())
