"""The reconstruction check: image, error plot and words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .record import Conditioning, Inversion
from .run import reconstruct

WIDTH, HEIGHT, MARGIN = 640, 360, 56


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two images in 0..1; infinite for equal ones."""
    error = float((a.float() - b.float()).square().mean())
    return float("inf") if error == 0 else -10 * float(np.log10(error))


def check(
    model: Any, inversion: Inversion, vae: Any, guidance: float, negative: Conditioning | None
) -> tuple[Tensor, Tensor, str]:
    """Reconstruct and compare with the image's own latent, decoded by the same VAE.

    Returns:
        the reconstruction (B, H, W, 3), the plot (1, h, w, 3), both in 0..1, and a report.
    """
    result = reconstruct(model, inversion, guidance, negative)
    latent_format = model.get_model_object("latent_format")
    image = vae.decode(result.latent)
    reference = vae.decode(latent_format.process_out(inversion.latents[0]))
    value = psnr(image, reference)
    text = (
        f"{inversion.describe()}\n"
        f"Guidance {guidance:g}: PSNR {value:.2f} dB against the decoded source latent, "
        f"latent error {result.errors[-1]:.4f} at the end."
    )
    plot = line_plot(result.errors, "relative latent error, noise to image", f"PSNR {value:.2f} dB")
    return image, plot, text


def line_plot(values: Sequence[float], title: str, note: str) -> Tensor:
    """A line plot (1, h, w, 3) in 0..1 of values over steps."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    top = max(max(values), 1e-12)
    box = (MARGIN, 36, WIDTH - 16, HEIGHT - 32)
    draw.rectangle(box, outline="#999999")
    draw.text((MARGIN, 10), f"{title}: {note}", fill="black")
    for share in (0.0, 0.5, 1.0):
        y = box[3] - share * (box[3] - box[1])
        draw.line((box[0], y, box[2], y), fill="#dddddd")
        draw.text((4, y - 6), f"{top * share:.2g}", fill="#555555")
    scale = (box[2] - box[0]) / max(1, len(values) - 1)
    points = [(box[0] + i * scale, box[3] - v / top * (box[3] - box[1])) for i, v in enumerate(values)]
    if len(points) > 1:
        draw.line(points, fill="#c22f2f", width=2)
    draw.text((box[0], box[3] + 8), "0", fill="#555555")
    draw.text((box[2] - 24, box[3] + 8), str(len(values) - 1), fill="#555555")
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]
