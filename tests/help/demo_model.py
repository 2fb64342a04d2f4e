"""A demo model with random weights, for tests of what handles it."""

from __future__ import annotations

import torch
from torch import Tensor
from training import network


def random_model(words: list[str], seed: int = 0) -> dict[str, Tensor]:
    """The tensors of a model file whose token table knows the words of some captions."""
    rng = torch.Generator().manual_seed(seed)
    unet, text, vae = network.new_unet(), network.new_text_model(), network.Autoencoder()
    for module in (unet, text, vae):
        network.initialise(module, rng)
    return network.pack(unet, text, vae, network.tokenize(words).unique())
