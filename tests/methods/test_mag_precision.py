"""MAG-Edit in half precision: what is single there, and what stays the model's."""

from __future__ import annotations

import edits
import pytest
import tiny
import torch
from attention_edit.attention.methods.cpam import CPAM
from attention_edit.attention.methods.p2p import P2P
from attention_edit.attention.methods.pnp import PnP
from mag_runs import guided, part
from prompts import prompt


@pytest.fixture(scope="module")
def halved():
    """A model in half precision, and an image inverted with it."""
    half = tiny.tiny_model(dtype=torch.bfloat16)
    return half, edits.invert(half, steps=3)


@pytest.mark.parametrize("under", [None, "p2p", "pnp", "cpam"])
def test_half_precision_is_kept_but_for_the_guided_passes(halved, under, monkeypatch):
    """The slope is one of single precision, and the run's own passes and the source are of the model's."""
    half, inversion = halved
    controls = {
        None: [],
        "p2p": [P2P(prompt("a cat on a mat"), prompt("a cat red striped thing on a mat"))],
        "pnp": [PnP()],
        "cpam": [CPAM(edits.masks(), normal_share=0.0)],
    }[under]
    seen = []
    forward = type(half.model.diffusion_model).forward

    def spy(self, x, *args, **kwargs):
        seen.append((torch.is_grad_enabled(), x.dtype))
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(type(half.model.diffusion_model), "forward", spy)
    one = part(scale=50.0)
    guided(half, inversion, one, under=controls)
    assert set(seen) == {(True, torch.float32), (False, torch.bfloat16)}
    assert one.curve.worked()
    # The run of which MAG-Edit guides nothing is the one without it, bit for bit.
    bare = guided(half, inversion, part(iterations=0, blend=1.0), under=controls)
    assert torch.equal(bare, edits.run(half, inversion, *controls))
