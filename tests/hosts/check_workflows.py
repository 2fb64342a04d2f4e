"""On the host of `python tests --host`: every file of workflows/ runs on its server, with finite latents and pictures.

Without the mark `more_workflows` a few run, one for each way in which the pack holds on to the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import safetensors.torch
import torch
from made import FOLDER, execute, prompt_of
from show.workflow_file import without_download

if TYPE_CHECKING:
    from machine.comfy_server import ComfyServer

FEW = ("cpam-replace", "flow-edit", "null-text-inversion", "p2p-swap", "pnp", "transformer-edit")
"""Masks with the source in a call of its own; gradients to the text; maps of cross-attention; features of layers; a
rectified flow by a sampler of the pack's own, and one whose attention is edited."""
FILES = without_download(FOLDER)
SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced")


def marked(name: str) -> object:
    return name if name in FEW else pytest.param(name, marks=pytest.mark.more_workflows)


def test_the_few_are_there() -> None:
    assert set(FEW) <= {path.stem for path in FILES}


@pytest.mark.parametrize("name", [marked(path.stem) for path in FILES])
def test_workflow(name: str, server: ComfyServer) -> None:
    prompt = prompt_of(server, name)
    sampled = [node for node, entry in prompt.items() if entry["class_type"] in SAMPLERS]
    for node in sampled:
        inputs = {"samples": [node, 0], "filename_prefix": f"{name}-{node}"}
        prompt[f"{node}-latent"] = {"class_type": "SaveLatent", "inputs": inputs, "_meta": {"title": "Latent"}}
    made = execute(server, name, prompt)
    assert made.images and all(image.isfinite().all() for image in made.images.values())
    assert all(len(image.flatten(2).unique(dim=-1)[0, 0]) > 1 for image in made.images.values()), "a flat picture"
    for node in sampled:
        files = list((server.base / "output").glob(f"{name}-{node}_*.latent"))
        assert files
        for file in files:
            latent = safetensors.torch.load_file(file)["latent_tensor"]
            assert torch.isfinite(latent).all() and latent.std() > 0
    assert "invalid value encountered" not in server.log_text()
