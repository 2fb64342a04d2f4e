"""What becomes of a run's final latent."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...inversion.steps import scale_of
from .control import LatentControl, results
from .run import Run


def finished(run: Run, latent_format: Any, out: Tensor) -> Tensor:
    """The final latent (B, C, h, w): what controls make of it, and their end; the branches' are left in `run.ended`.

    A rectified flow's is left untouched where no control changes it: the way to the network's scale and back moves last
    bits.
    """
    inversion = run.inversion
    ending = [control for control in run.controls if isinstance(control, LatentControl) and control in run.acted]
    if inversion is not None and (inversion.prediction != "flow" or any(map(results, ending))):
        found, source = _ended(run, inversion.prediction, latent_format, out), inversion.latents[0]
        z = run.own(found)
        run.ended = {b.name: x for b, x in zip(run.branches, found.split(run.batch), strict=bool(run.branches))}
        if not run.whole:
            run.move_to(run.sigmas[-1])
            source = inversion.at(run.sigma)
        for control in ending:
            z = control.result(run, run.states[control], z, source)
        out = latent_format.process_out(z)
    for control in run.controls:
        control.finish(run, run.states[control], out)
    return out


def _ended(run: Run, prediction: str, latent_format: Any, out: Tensor) -> Tensor:
    """What a run ended with, (R, C, h, w) as the sampler left it, off the scale of the schedule's last level.

    The inversion's schedule ends at sigma_0, where alpha is alpha_0 and not 1 ("set alpha to one" off); samplers
    leave x there, the image latent is z = x / sqrt(1 + sigma_0^2). A rectified flow's ends at the image itself. A run
    that ends before that leaves x, from which another one goes on.
    """
    last, z = run.sigmas[-1], latent_format.process_in(out)
    return scale_of(prediction).from_sampler(z, last) if run.whole and last > 0 else z
