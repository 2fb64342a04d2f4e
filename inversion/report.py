"""What nodes show of inversions: the reconstruction check, plots of errors, and words."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..host.conditioning import Conditioning
from ..host.models import latent_of
from .cache import cached
from .improvement import Found, Improvement
from .origin import Origin
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
    image, reference = (
        # of latents with an axis of frames the host's autoencoder makes (B, 1, H, W, 3)
        vae.decode(latent).flatten(0, -4)
        for latent in (result.latent, latent_of(model, inversion.latents[0]))
    )
    value = psnr(image, reference)
    text = (
        f"{inversion.describe()}\n"
        f"Guidance {guidance:g}: PSNR {value:.2f} dB against the decoded source latent, "
        f"latent error {result.errors[-1]:.4f} at the end.\n"
        f"The check took {result.cost.describe()}."
    )
    plot = line_plot(result.errors, "relative latent error, noise to image", f"PSNR {value:.2f} dB")
    return image, plot, text


def begun(origin: Origin, model: Any, latent: dict[str, Any], positive: Conditioning, on_disk: bool) -> Inversion:
    """An origin's inversion at guidance 1.

    Args:
        on_disk: look for it, and keep it, in the cache on disk.
    """
    return _made(partial(origin, model, latent, positive), on_disk, model, origin, latent["samples"], positive)[0]


def improved(
    improvement: Improvement,
    model: Any,
    inversion: Inversion,
    negative: Conditioning | None,
    guidance: float,
    on_disk: bool,
) -> tuple[Inversion, Tensor, str]:
    """An improvement's inversion, pictures (N, h, w, 3) in 0..1 and a report.

    The first picture is the plot of its errors, the others are what the improvement shows of a run; of an inversion
    that comes from disk there are none.

    Args:
        on_disk: look for it, and keep it, in the cache on disk.
    """
    given = inversion, negative, guidance
    found, run = _made(partial(improvement, model, *given), on_disk, model, improvement, *given)
    took = "It was read from the cache on disk." if run is None else f"It took {run.cost.describe()}."
    more = [] if run is None else improvement.pictures(run)
    pictures = torch.cat([line_plot(found.errors, *improvement.caption(found, guidance)), *more])
    return found, pictures, f"{found.describe()}\n{took}"


def _made(make: Callable[[], Found], on_disk: bool, model: Any, *values: Any) -> tuple[Inversion, Found | None]:
    """An inversion, and the run that found it; None if it comes from disk, where model and values name it."""
    runs: list[Found] = []

    def keep() -> Inversion:
        runs.append(make())
        return runs[0].inversion

    inversion = cached(keep, model, *values)[0] if on_disk else keep()
    return inversion, runs[0] if runs else None
