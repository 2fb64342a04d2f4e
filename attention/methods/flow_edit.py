"""FlowEdit (Kulikov et al., ICCV 2025): a rectified flow leads from the image to its edit, without an inversion.

At each noise level the image is made noisy with fresh noise, and the edit is moved by the difference of two
velocities: the target prompt's at the edit, which carries the same noise, and the source prompt's at the image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...host.conditioning import Conditioning, source_conditioning
from ...host.guider import HostRun, OwnSampler
from ...host.models import prediction_of
from ...host.transformers import takes_guidance
from ..engine.acts import Window
from ..engine.plan import plan_of

Denoise = Callable[[Tensor, float], Tensor]
"""A prompt's prediction: (z (B, C, h, w), noise level) to the clean latent, guided."""


@dataclass(eq=False)
class FlowEdit(OwnSampler):
    """FlowEdit in the place of the host's sampler, under any guider with the target prompt.

    It takes the schedule, the seed and the latent that the host gives, and adds noise by itself. Where the latent has a
    noise mask, the image outside is kept as it is.

    Attributes:
        source: the caption of the image. guidance: scale of the source prompt (1.5 for Flux, 3.5 for SD3); where the
            model reads a scale as an input (Flux.1 dev), it is that, unless the prompt has its own.
        start: share of the steps that are left out at high noise (1 - n_max / T: 4 of 28 for Flux, 17 of 50 for SD3).
        end: share after which the edit is sampled on as any image is (1 - n_min / T); 1 is the paper's.
        average: draws of noise per step (n_avg), each of which costs as much as the first.
    """

    source: Conditioning
    guidance: float = 1.5
    start: float = 0.14
    end: float = 1.0
    average: int = 1
    name = "FlowEdit"

    def __post_init__(self) -> None:
        if self.start >= self.end:
            raise ValueError(f"Set start below end: {self.name} acts from {self.start:g} to {self.end:g} of the steps.")

    def run(self, host: HostRun) -> Tensor:
        """The edit (B, C, h, w), in the network's scale.

        Raises:
            ValueError: a model that is no rectified flow or carries edits, or a source prompt of more than text.
        """
        self._check(host)
        source, target, image = self._source(host), host.denoised, host.start
        sigmas = [float(sigma) for sigma in host.sigmas]
        window = Window(self.start, self.end).of(len(sigmas) - 1)
        generator = torch.Generator().manual_seed(host.seed or 0)
        edit, plain = image, None
        for step in range(window.start, len(sigmas) - 1):
            high, low = sigmas[step], sigmas[step + 1]
            if step in window:
                drawn = [_noise(image, generator) for _ in range(self.average)]
                edit = edit + flow_edit_step(source, target, image, edit, drawn, (high, low))
                edit = host.kept(edit, image)
                host.show(step, edit, edit)
                continue
            noise = _noise(image, generator) if plain is None else plain[1]
            z = edit + high * (noise - image) if plain is None else plain[0]
            clean = target(z, high)
            z = host.kept(z + (low - high) * (z - clean) / high, (1 - low) * image + low * noise)
            host.show(step, clean, z)
            plain = z, noise
        return edit if plain is None else plain[0]

    def _check(self, host: HostRun) -> None:
        model = host.guider.model_patcher
        if prediction_of(model) != "flow":
            raise ValueError(
                f"Connect a rectified flow (Flux, SD3, Chroma, Z-Image): {self.name} moves along the velocities of "
                "one, and this model predicts noise. On SD models use DDIM Inversion and an edit such as CPAM, FPE or "
                "Prompt-to-Prompt."
            )
        if plan_of(model).edits:
            raise ValueError(
                f"Connect the model from in front of the edit nodes to {self.name}'s guider: it edits by itself, and "
                "this model carries edits that follow an inversion."
            )

    def _source(self, host: HostRun) -> Denoise:
        """The source prompt's prediction, with the guider's negative prompt."""
        given = source_conditioning(self.source, f"source prompt of {self.name}")
        if not takes_guidance(host.guider.model_patcher):
            return host.denoised_by(given, self.guidance)
        return host.denoised_by([[states, {"guidance": self.guidance, **options}] for states, options in given], 1.0)


def flow_edit_step(
    source: Denoise, target: Denoise, image: Tensor, edit: Tensor, drawn: list[Tensor], levels: tuple[float, float]
) -> Tensor:
    """What one step adds to the edit (FlowEdit, Algorithm 1).

    z_src = (1 - s) image + s noise and z_tar = edit + z_src - image; with v(z) = (z - clean(z)) / s the edit moves by
    (s' - s) (v_tar(z_tar) - v_src(z_src)), the mean over the noises.

    Args:
        image, edit: (B, C, h, w). drawn: noises of the same shape. levels: s and s'.
    """
    high, low = levels
    total = torch.zeros_like(image)
    for noise in drawn:
        z = (1 - high) * image + high * noise
        there = edit + z - image
        total += ((there - target(there, high)) - (z - source(z, high))) / high
    return (low - high) * total / len(drawn)


def _noise(image: Tensor, generator: torch.Generator) -> Tensor:
    """Noise (1, C, h, w) for all images of a batch alike, so that each comes out as it does alone."""
    return torch.randn(1, *image.shape[1:], generator=generator).to(image)
