"""Generated sources, and the families of models that methods are tested on."""

from __future__ import annotations

import pytest
import tiny
import torch
from attention_edit.host.models import latent_of
from attention_edit.inversion.generated import GeneratedSource

FAMILIES = pytest.mark.parametrize(("kind", "v"), [("SD1", False), ("SD2", True), ("SDXL", False)])


def generated(model, kind="SD1", steps=4, guidance=7.5, prompt=5):
    """A generated source: the prompt of seed 5 against that of seed 3."""
    with torch.inference_mode():
        latent = {"samples": tiny.latent(1)}
        source = GeneratedSource(steps, seed=7)
        inversion = source(model, latent, tiny.prompt(prompt, kind), tiny.prompt(3, kind), guidance).inversion
        return inversion, latent_of(model, inversion.latents[0])
