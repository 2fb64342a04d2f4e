"""What nodes show of inversions: the reconstruction check, plots of errors, and words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from ..host.conditioning import Conditioning
from ..host.cost import Cost
from .cache import cached
from .ddim_inversion import ddim_inversion
from .fixed_point import fixed_point_inversion
from .null_text import Settings, null_text_inversion
from .plot import line_plot
from .reconstruct import reconstruct
from .record import Inversion


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
        f"latent error {result.errors[-1]:.4f} at the end.\n"
        f"The check took {result.cost.describe()}."
    )
    plot = line_plot(result.errors, "relative latent error, noise to image", f"PSNR {value:.2f} dB")
    return image, plot, text


def null_text(
    model: Any, inversion: Inversion, negative: Conditioning, settings: Settings, on_disk: bool
) -> tuple[Inversion, Tensor, str]:
    """Null-text inversion, the plot of its errors (1, h, w, 3) and a report.

    Args:
        on_disk: look for it, and keep it, in the cache on disk.
    """
    reports: list[Cost] = []

    def make() -> Inversion:
        found, report = null_text_inversion(model, inversion, negative, settings)
        reports.append(report.cost)
        return found

    found = _made(make, on_disk, model, "null text", inversion, negative, settings)
    title = f"relative latent error of sampling at guidance {settings.guidance:g}, noise to image"
    return found, line_plot(found.errors, title, f"{found.errors[-1]:.4f} at the end"), _told(found, reports)


def fixed_point(
    model: Any,
    inversion: Inversion,
    guided: tuple[float, Conditioning | None],
    limits: tuple[float, int],
    on_disk: bool,
) -> tuple[Inversion, Tensor, str]:
    """Fixed-point inversion, the plot of what is left at every step (1, h, w, 3) and a report.

    Args:
        guided: guidance scale and negative prompt. limits: tolerance and most iterations.
        on_disk: look for it, and keep it, in the cache on disk.
    """
    reports: list[Cost] = []

    def make() -> Inversion:
        found, report = fixed_point_inversion(model, inversion, guided, *limits)
        reports.append(report.cost)
        return found

    found = _made(make, on_disk, model, "fixed point", inversion, guided, limits)
    worst, (tolerance, iterations) = max(found.errors), limits
    note = f"{worst:.2g} at most" + ("" if worst <= tolerance else f" ({iterations} iterations were too few)")
    return found, line_plot(found.errors, "relative residual of each step, noise to image", note), _told(found, reports)


def ddim(
    model: Any, latent: dict[str, Any], conditioning: Conditioning, schedule: tuple[int, int], on_disk: bool
) -> Inversion:
    """DDIM inversion with (steps, offset), from the cache on disk if wanted."""
    return _made(
        lambda: ddim_inversion(model, latent, conditioning, *schedule),
        on_disk,
        model,
        "ddim",
        latent["samples"],
        conditioning,
        schedule,
    )


def _made(make: Callable[[], Inversion], on_disk: bool, model: Any, *values: Any) -> Inversion:
    return cached(make, model, *values)[0] if on_disk else make()


def _told(found: Inversion, costs: list[Cost]) -> str:
    took = f"It took {costs[0].describe()}." if costs else "It was read from the cache on disk."
    return f"{found.describe()}\n{took}"
