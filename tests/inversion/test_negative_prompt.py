"""Negative-prompt inversion: the source prompt in the null text's place."""

from __future__ import annotations

import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine.install import install, pin
from attention_edit.attention.methods.cpam import CPAM
from attention_edit.inversion.negative_prompt import NegativePromptInversion, slerp
from attention_edit.inversion.reconstruct import reconstruct


def improved(inversion, negative, interpolation):
    return NegativePromptInversion(interpolation)(None, inversion, negative, 1.0).inversion


KINDS = [("SD1", False), ("SD2", True), ("SDXL", False)]


@pytest.mark.parametrize(("kind", "v"), KINDS)
def test_negative_prompt_inversion_makes_guidance_inert_for_the_source(kind, v):
    model = tiny.tiny_model(kind, v)
    inversion = edits.invert(model, kind, steps=3)
    found = improved(inversion, None, 0.0)
    with torch.inference_mode():
        unguided = reconstruct(model, inversion, 1.0, None)
        guided = reconstruct(model, found, 7.5, None)
    assert edits.difference(guided.latent, unguided.latent) < 1e-3
    # In a sampler node as well, whatever is connected as negative prompt.
    pinned = pin(model, found, tuple(found.schedule))
    start, stub = edits.run_start(), torch.tensor([14.6, 0.0])
    out = tiny.sample(pinned, tiny.prompt(5, kind), tiny.prompt(9, kind), start, stub)
    assert edits.difference(out, unguided.latent) < 1e-3


def test_negative_prompt_inversion_equals_its_negative_prompt(model, inversion):
    """For an edit it is no more than the source prompt as negative prompt, in CPAM's null text too."""
    found = improved(inversion, None, 0.0)
    control = CPAM(edits.masks(), normal_share=0.0)
    ours = edits.run(model, found, control)
    patched = install(model, control, inversion)
    patched = pin(patched, inversion, tuple(inversion.schedule))
    stub = torch.tensor([14.6, 0.0])
    theirs = tiny.sample(patched, tiny.prompt(2), tiny.prompt(5), edits.run_start(), stub)
    assert torch.equal(ours, theirs)
    assert edits.difference(ours, edits.run(model, inversion, control)) > 1e-3


def test_interpolation(model, inversion):
    source, other = inversion.conditioning[0][0], tiny.prompt(3)[0][0]
    end = improved(inversion, tiny.prompt(3), 1.0).null_states[0]
    assert torch.allclose(end, other, atol=1e-5)
    middle = improved(inversion, tiny.prompt(3), 0.5).null_states[0]
    norm = middle.norm() / (source.norm() * other.norm()).sqrt()
    assert float(norm) == pytest.approx(1, abs=0.02)  # a straight line would pass at 0.7
    assert torch.equal(slerp(0.3, source, source), source)
    with pytest.raises(ValueError, match="connect an empty prompt"):
        improved(inversion, None, 0.5)
    with pytest.raises(ValueError, match=r"77 text tokens.*154"):
        improved(inversion, tiny.prompt(3, tokens=154), 0.5)


def test_interpolation_takes_sdxls_pooled_text_along():
    model = tiny.tiny_model("SDXL")
    inversion, other = edits.invert(model, "SDXL", steps=2), tiny.prompt(3, "SDXL")
    found = improved(inversion, other, 1.0).null_options["pooled_output"]
    assert torch.allclose(found, other[0][1]["pooled_output"], atol=1e-5)
    own = inversion.conditioning[0][1]["pooled_output"]
    assert torch.equal(improved(inversion, other, 0.0).null_options["pooled_output"], own)


def test_there_is_a_way_to_a_text_of_zeros_and_to_the_opposite():
    """ConditioningZeroOut's text has no direction: the way is straight, for that image of a batch alone."""
    source, other = (torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    other[0], other[1] = 0, -source[1]
    found = slerp(0.25, source, other)
    assert torch.allclose(found[0], 0.75 * source[0]) and torch.allclose(found[1], 0.5 * source[1], atol=1e-5)
    assert torch.equal(found[2:], slerp(0.25, source[2:], other[2:]))
    assert not torch.allclose(found[2], torch.lerp(source[2], other[2], 0.25))
