"""Inversion of rectified flows, on tiny random transformers."""

from __future__ import annotations

import edits
import pytest
import tiny_joint
import torch
from attention_edit.attention.engine.install import pin
from attention_edit.attention.methods.masactrl import MasaCtrl
from attention_edit.inversion.ddim_inversion import DDIMInversion
from attention_edit.inversion.direct import DirectInversion
from attention_edit.inversion.file_format import read, write
from attention_edit.inversion.fixed_point import FixedPointInversion
from attention_edit.inversion.generated import GeneratedSource
from attention_edit.inversion.null_text import NullTextInversion
from attention_edit.inversion.reconstruct import reconstruct
from attention_edit.inversion.schedule import levels
from attention_edit.inversion.start import schedule_from
from comfy.samplers import calculate_sigmas
from tiny_joint import joint_inversion, joint_latent, joint_model, joint_prompt, joint_run, joint_sample

KINDS = pytest.mark.parametrize("kind", list(tiny_joint.CONFIGS))


@KINDS
def test_the_schedule_is_the_models_own(kind):
    sampling = joint_model(kind).get_model_object("model_sampling")
    assert levels(sampling, 10, 0)[::-1] == calculate_sigmas(sampling, "simple", 10).tolist()


def test_euler_at_the_destination_level():
    """z' = z + (s' - s) v(z, s'), with the velocity (z - denoised) / s' of the host's own prediction."""
    model = joint_model("SD3")
    inversion = joint_inversion(model, "SD3", iterations=1)
    low, high = inversion.sigmas[1:3]
    step = {"noise": inversion.latents[1] / high, "sigmas": torch.tensor([high, 0.0])}
    zeros = torch.zeros_like(inversion.latents[1])
    prompts = joint_prompt(5, "SD3"), joint_prompt(3, "SD3")
    out = joint_sample(model, *prompts, zeros, **step)
    denoised = model.get_model_object("latent_format").process_in(out)
    velocity = (inversion.latents[1] - denoised) / high
    expected = inversion.latents[1] + (high - low) * velocity
    assert edits.difference(inversion.latents[2], expected) < 1e-5


@KINDS
def test_the_fixed_point_is_taken_back_by_stock_euler(kind):
    """The more iterations, the nearer; where they converge, as on SD3 and Flux.2, to float32."""
    model = joint_model(kind)
    image = model.get_model_object("latent_format").process_out(joint_inversion(model, kind).latents[0])
    errors = []
    for iterations in (1, 3, 12):
        inversion = joint_inversion(model, kind, steps=12, iterations=iterations)
        assert torch.equal(inversion.latents[0], joint_inversion(model, kind).latents[0])
        out = joint_run(model, inversion, kind=kind, positive=inversion.conditioning)
        errors.append(float((out - image).norm() / image.norm()))
    assert errors[2] < errors[1] < errors[0]
    assert kind != "SD3" or errors[2] < 1e-5


def test_a_drawn_source_is_drawn_again():
    model = joint_model("Flux")
    with torch.inference_mode():
        latent = {"samples": joint_latent(1)}
        inversion = GeneratedSource(6, seed=7)(model, latent, joint_prompt(5)).inversion
    image = model.get_model_object("latent_format").process_out(inversion.latents[0])
    out = joint_run(model, inversion, positive=inversion.conditioning)
    assert edits.difference(out, image) < 1e-5
    assert reconstruct(model, inversion, 1.0, None).errors[-1] < 1e-5


def test_at_is_linear_between_levels_and_the_stored_latent_on_them():
    inversion = joint_inversion(joint_model("SD3"), "SD3")
    for i, sigma in enumerate(inversion.sigmas):
        assert torch.equal(inversion.at(sigma), inversion.latents[i])
    low, high = inversion.sigmas[1:3]
    middle = inversion.at((low + high) / 2)
    assert torch.allclose(middle, inversion.latents[1:3].mean(0), atol=1e-6)
    velocity = (inversion.latents[2] - inversion.latents[1]) / (high - low)
    assert torch.allclose(inversion.clean_at(high), inversion.latents[2] - high * velocity, atol=1e-5)


@KINDS
def test_a_file_holds_it(kind, tmp_path):
    inversion = joint_inversion(joint_model(kind), kind)
    write(inversion, tmp_path / "flow.safetensors")
    again = read(tmp_path / "flow.safetensors", "flow")
    assert torch.equal(again.latents, inversion.latents)
    assert (again.sigmas, again.prediction, again.family) == (inversion.sigmas, "flow", inversion.family)
    assert again.conditioning[0][1].keys() == inversion.conditioning[0][1].keys()


def test_embedded_guidance_is_one_unless_the_prompt_says_otherwise():
    model = joint_model("Flux")
    latent = {"samples": joint_latent(1)}
    with torch.inference_mode():
        invert = DDIMInversion(2)
        plain = invert(model, latent, joint_prompt(5)).inversion
        stated = invert(model, latent, joint_prompt(5, guidance=1.0)).inversion
        other = invert(model, latent, joint_prompt(5, guidance=3.5)).inversion
    assert plain.conditioning[0][1]["guidance"] == 1.0
    assert torch.equal(plain.latents, stated.latents)
    assert not torch.equal(plain.latents, other.latents)


def test_a_later_start_is_on_the_trajectory():
    """Half of the steps with the source prompt end at a drawn image."""
    model = joint_model("Flux")
    with torch.inference_mode():
        source = GeneratedSource(6, seed=7)(model, {"samples": joint_latent(1)}, joint_prompt(5)).inversion
    pinned = pin(model, source, schedule_from(source, 0.5))
    zeros = torch.zeros(1, 16, 8, 8)
    out = joint_sample(pinned, source.conditioning, joint_prompt(3), zeros, zeros, torch.tensor([1.0, 0.0]))
    image = model.get_model_object("latent_format").process_out(source.latents[0])
    assert edits.difference(out, image) < 1e-5


def test_improvements_work_or_are_refused_by_name():
    model = joint_model("SD3")
    inversion, negative = joint_inversion(model, "SD3", iterations=1), joint_prompt(3, "SD3")
    with torch.inference_mode():
        better = FixedPointInversion(iterations=8)(model, inversion, negative, 1.0).inversion
        before, after = (reconstruct(model, found, 1.0, None).errors[-1] for found in (inversion, better))
        pulled = DirectInversion(0.5)(model, inversion, negative, 3.0).inversion
    assert after < before / 10
    assert torch.equal(pulled.latents[0], inversion.latents[0]) and torch.equal(
        pulled.latents[-1], inversion.latents[-1]
    )
    with pytest.raises(ValueError, match=r"does not work on rectified flows such as SD3"):
        NullTextInversion()(model, inversion, negative, 3.0)


@KINDS
def test_the_source_is_asked_at_the_stored_latents(kind, monkeypatch):
    """DirectEdit's form: even of a bad inversion, what an edit takes from the source has no drift."""
    model = joint_model(kind)
    inversion = joint_inversion(model, kind, iterations=1)
    seen, own = [], model.model._apply_model

    def watched(x, t, *args, **kwargs):
        seen.append((float(t.flatten()[0]), x.clone()))
        return own(x, t, *args, **kwargs)

    monkeypatch.setattr(model.model, "_apply_model", watched)
    joint_run(model, inversion, MasaCtrl(0.0, 0), kind=kind)
    asked = {level: [row for sigma, x in seen if sigma == level for row in x] for level, _ in seen}
    assert len(asked) == len(inversion.schedule) - 1
    for latent, level in zip(inversion.latents.flip(0), sorted(asked, reverse=True), strict=False):
        assert any(torch.equal(row, latent[0]) for row in asked[level]), f"not at level {level}"
