"""A variation of an edit: part of the noise that a run starts with is drawn anew.

x = x_0 + sigma e is the inverted latent, with the image x_0 and its noise e. Fresh noise n takes a share s of e,
e' = sqrt(1 - s) e + sqrt(s) n, which keeps its variance: one step of DDPM's forward process with beta = s (Ho et al.
2020, "Denoising Diffusion Probabilistic Models", Eq 2). Of a rectified
flow, x = (1 - sigma) x_0 + sigma e. At s = 1 it is the host's own noising of an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...host.guider import noise_like
from ...host.models import over_frames
from ...inversion.record import Inversion


@dataclass(frozen=True, eq=False)
class Variation:
    """How much of the noise is drawn anew, and where. The source's own trajectory stays as it is.

    Attributes:
        share: s, above 0 and at most 1.
        seed: of the noise, where the sampler brings none and has no seed.
        cells: (M, 1, h, w) bool, the latent cells whose noise is drawn anew, M = 1 or the batch; None for all.
    """

    share: float
    seed: int = 0
    cells: Tensor | None = None

    def start(self, inversion: Inversion, sigma: float, batch: int, noise: Tensor | None = None) -> Tensor:
        """The latent (batch, C, h, w) that a run starts with at a noise level, in the sampler's scale.

        Args:
            noise: (batch, C, h, w), n; None makes it of the seed as the host's samplers do.

        Raises:
            ValueError: a mask for another number of images.
        """
        own, image = inversion.at(sigma), inversion.latents[0]
        if own.shape[0] not in (1, batch):
            return own  # what the sampler then says of the two shapes is the cure
        own = own.expand(batch, *own.shape[1:])
        fresh = noise_like(own, self.seed) if noise is None else noise.to(own)
        clean = image * (1 - sigma) if inversion.prediction == "flow" else image
        mixed = clean + (1 - self.share) ** 0.5 * (own - clean) + sigma * self.share**0.5 * fresh
        if self.cells is None:
            return mixed
        if self.cells.shape[0] not in (1, batch):
            raise ValueError(
                f"Give Edit Setup one variation_mask, or one for each image: it has {self.cells.shape[0]}, and the "
                f"sampler runs {batch} images."
            )
        return torch.where(over_frames(self.cells, own), mixed, own)
