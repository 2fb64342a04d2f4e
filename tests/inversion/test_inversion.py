"""DDIM inversion against a reference written here, and the INVERSION record."""

from __future__ import annotations

import math

import comfy.samplers
import pytest
import tiny
import torch
from attention_edit.attention.engine.install import install
from attention_edit.attention.methods.background import ExactBackground
from attention_edit.host.models import prediction_of
from attention_edit.inversion.ddim_inversion import DDIMInversion
from attention_edit.inversion.reconstruct import reconstruct
from attention_edit.inversion.record import Inversion
from attention_edit.inversion.schedule import levels, timesteps
from attention_edit.inversion.steps import alpha_of, ddim_step, invert, to_eps

STEPS = 10


def make_inversion(model, kind="SD1", batch=1, steps=STEPS, offset=0, source=5, **size) -> Inversion:
    with torch.inference_mode():
        latent = {"samples": tiny.latent(1, batch, **size)}
        return DDIMInversion(steps, offset)(model, latent, tiny.prompt(source, kind)).inversion


def float64_unet(model):
    """The host's UNet in float64 as a network for `invert`: (z, sigma) to its raw prediction."""
    sampling = model.get_model_object("model_sampling")
    unet = model.model.diffusion_model.double()
    unet.dtype = torch.float64
    context = tiny.prompt(5)[0][0].double()

    def predict(z, sigma):
        t = sampling.timestep(torch.tensor([sigma])).float()
        with torch.no_grad():
            return unet(z, t.expand(len(z)), context=context.expand(len(z), -1, -1), transformer_options={})

    return predict


def reference_inversion(predict, z, table, steps, offset, v):
    """DDIM inversion by the formulas of the DDIM paper, with alphas by timestep, in float64."""
    alphas = 1 / (1 + table.double() ** 2)
    stride = 1000 // steps
    trajectory = [z]
    for t in [i * stride + offset for i in range(steps)]:
        before = max(t - stride, 0)
        a, b = alphas[before], alphas[t]
        out = predict(z, float(table[t]))
        eps = a.sqrt() * out + (1 - a).sqrt() * z if v else out
        clean = (z - (1 - a).sqrt() * eps) / a.sqrt()
        z = b.sqrt() * clean + (1 - b).sqrt() * eps
        trajectory.append(z)
    return trajectory


@pytest.mark.parametrize("v", [False, True])
@pytest.mark.parametrize("offset", [0, 1])
def test_agrees_with_a_float64_reference(offset, v):
    model = tiny.tiny_model("SD2" if v else "SD1", v)
    table = model.get_model_object("model_sampling").sigmas
    predict = float64_unet(model)
    z = torch.randn(2, 4, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = invert(predict, z, levels(model.get_model_object("model_sampling"), STEPS, offset), "v" if v else "eps")
    theirs = reference_inversion(predict, z, table, STEPS, offset, v)
    # With offset 0 the reference's first step, from timestep 0 to 0, is an identity that ours leaves out.
    if offset == 0:
        assert torch.allclose(theirs[1], theirs[0], rtol=1e-12, atol=1e-12)
        theirs = theirs[1:]
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert float((a - b).abs().max() / b.abs().max()) < 1e-9


def test_a_fine_inversion_keeps_the_levels_of_the_edit():
    """As Plug-and-Play's authors do it: the latents are those of an inversion in so many steps."""
    model = tiny.tiny_model()
    given = model, {"samples": tiny.latent(1)}, tiny.prompt(5)
    with torch.inference_mode():
        fine = DDIMInversion(40, 1)(*given).inversion
        kept, coarse = (DDIMInversion(4, 1, steps)(*given) for steps in (40, 0))
    found = kept.inversion
    assert found.sigmas == coarse.inversion.sigmas and found.steps == 4
    for sigma, latent in zip(found.sigmas, found.latents, strict=True):
        assert torch.equal(latent, fine.latents[fine.sigmas.index(sigma)])
    assert not torch.equal(found.latents[-1], coarse.inversion.latents[-1])
    assert (kept.cost.forward, coarse.cost.forward) == (fine.sigmas.index(found.sigmas[-1]), 4)


@pytest.mark.parametrize(("kind", "v"), [("SD1", False), ("SD2", False), ("SD2", True), ("SDXL", False)])
def test_host_run_is_the_pure_function(kind, v):
    model = tiny.tiny_model(kind, v)
    inversion = make_inversion(model, kind, batch=2)
    assert inversion.prediction == ("v" if v else "eps") == prediction_of(model)
    sampling = model.get_model_object("model_sampling")
    context, options = tiny.prompt(5, kind)[0]
    extra = {}
    if kind == "SDXL":
        extra["y"] = model.model.encode_adm(
            pooled_output=options["pooled_output"], width=128, height=128, device="cpu"
        ).expand(2, -1)

    def predict(z, sigma):
        t = sampling.timestep(torch.tensor([sigma])).float().expand(2)
        with torch.no_grad():
            return model.model.diffusion_model(z, t, context=context.expand(2, -1, -1), transformer_options={}, **extra)

    start = model.get_model_object("latent_format").process_in(tiny.latent(1, 2))
    for a, b in zip(inversion.latents, invert(predict, start, inversion.sigmas, inversion.prediction), strict=True):
        # float32 through up to 70 layers and ten steps, and x = z sqrt(1 + sigma^2) there and back.
        assert float((a - b).abs().max() / b.abs().max()) < 1e-4


def test_schedules():
    assert timesteps(50, 0)[:2] == [0, 20] and timesteps(50, 0)[-1] == 980
    assert timesteps(50, 1)[0] == 1 and timesteps(50, 1)[-1] == 981
    sampling = tiny.tiny_model().get_model_object("model_sampling")
    assert len(levels(sampling, 50, 0)) == 50 and len(levels(sampling, 50, 1)) == 51
    host = comfy.samplers.calculate_sigmas(sampling, "ddim_uniform", 50)
    assert levels(sampling, 50, 1)[::-1][:50] == pytest.approx(host[:50].tolist(), rel=1e-6)


def test_a_schedule_without_a_step_is_refused(model):
    """One step of offset 0 stays at timestep 0; of offset 1 it is a step."""
    with pytest.raises(ValueError, match="2 or more"):
        levels(model.get_model_object("model_sampling"), 1, 0)
    assert len(levels(model.get_model_object("model_sampling"), 1, 1)) == 2


def test_evaluations(monkeypatch):
    """49 rows for 50 steps on offset 0 (the first step is an identity), times the batch."""
    model = tiny.tiny_model()
    rows = []
    unet = model.model.diffusion_model
    forward = unet.forward
    monkeypatch.setattr(unet, "forward", lambda x, *a, **k: rows.append(len(x)) or forward(x, *a, **k))
    make_inversion(model, batch=2, steps=50)
    assert sum(rows) == 49 * 2


def test_step_is_its_own_inverse():
    rng = torch.Generator().manual_seed(0)
    z, eps = (torch.randn(1, 4, 8, 8, dtype=torch.float64, generator=rng) for _ in range(2))
    a, b = alpha_of(0.3), alpha_of(2.0)
    assert torch.allclose(ddim_step(ddim_step(z, eps, a, b), eps, b, a), z, rtol=1e-9)
    assert torch.allclose(ddim_step(z, eps, a, a), z, rtol=1e-12)


def test_constant_noise_inverts_exactly():
    eps = torch.randn(1, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sigmas = levels(tiny.tiny_model().get_model_object("model_sampling"), 20, 0)
    image = torch.randn(1, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z = invert(lambda z, sigma: eps, image, sigmas, "eps")[-1]
    for high, low in zip(sigmas[::-1], sigmas[::-1][1:], strict=False):
        z = ddim_step(z, eps, alpha_of(high), alpha_of(low))
    assert torch.allclose(z, image, rtol=1e-9)


def test_guidance_is_inert_when_both_prompts_are_equal():
    model = tiny.tiny_model()
    inversion = make_inversion(model)
    with torch.inference_mode():
        plain = reconstruct(model, inversion, 1.0, None)
        guided = reconstruct(model, inversion, 7.5, tiny.prompt(5))
    assert torch.allclose(plain.latent, guided.latent, rtol=1e-3, atol=1e-3)
    assert plain.errors[0] < 1e-6 and plain.errors[-1] > 0


def test_reconstruction_needs_a_negative_prompt_for_guidance():
    model = tiny.tiny_model()
    with pytest.raises(ValueError, match="negative prompt"):
        reconstruct(model, make_inversion(model), 7.5, None)


def test_unknown_prediction_is_named():
    with pytest.raises(ValueError, match="flow"):
        to_eps(torch.zeros(1), torch.zeros(1), 0.5, "flow")


@pytest.fixture(scope="module")
def inversion():
    return make_inversion(tiny.tiny_model(), batch=2)


def test_at_is_exact_at_stored_levels_and_linear_between(inversion):
    for i, sigma in enumerate(inversion.sigmas):
        expected = inversion.latents[i] * (1 + sigma * sigma) ** 0.5
        assert torch.equal(inversion.at(sigma), expected)
        assert torch.equal(inversion.at(float(torch.tensor(sigma * (1 + 3e-7)))), expected)
    low, high = inversion.sigmas[3], inversion.sigmas[4]
    middle = inversion.at((low + high) / 2)
    assert torch.allclose(middle, (inversion.at(low) + inversion.at(high)) / 2, atol=1e-5)


def test_between_levels_it_is_ddims_own_line():
    """One DDIM step has one x0 and one eps; x = x0 + sigma eps at every level between."""
    z = torch.randn(1, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    eps = torch.randn(1, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    low, high, between = 0.5, 2.0, 1.1
    end = ddim_step(z, eps, alpha_of(low), alpha_of(high))
    record = Inversion(torch.stack([z, end]), (low, high), 1, 0, "SD1.x", "eps", tiny.prompt(1))
    expected = ddim_step(z, eps, alpha_of(low), alpha_of(between)) * (1 + between**2) ** 0.5
    assert torch.allclose(record.at(between), expected, rtol=1e-9)
    clean = (z - (1 - alpha_of(low)) ** 0.5 * eps) / alpha_of(low) ** 0.5
    for sigma in (high, between):
        assert torch.allclose(record.clean_at(sigma), clean, rtol=1e-9)


def test_steps_count_from_the_noisy_end(inversion):
    assert [inversion.step(s) for s in inversion.schedule] == list(range(STEPS))
    assert inversion.step((inversion.sigmas[-1] + inversion.sigmas[-2]) / 2) == 0


def test_outside_the_trajectory_is_an_error(inversion):
    with pytest.raises(ValueError, match=r"14\.6.*10 steps"):
        inversion.at(14.6)


def test_another_schedule_is_an_error_that_names_both(inversion):
    model = tiny.tiny_model()
    patched = install(model, ExactBackground(torch.ones(1, 128, 128, dtype=torch.bool)), inversion)
    foreign = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "karras", 7)
    with pytest.raises(ValueError, match=r"7 steps.*10 steps, offset 0"):
        tiny.sample(patched, tiny.prompt(2), tiny.prompt(3), tiny.latent(1, 2), foreign)


def test_another_model_is_an_error_that_names_both(inversion):
    model = tiny.tiny_model("SD2", v=True)
    patched = install(model, ExactBackground(torch.ones(1, 128, 128, dtype=torch.bool)), inversion)
    with pytest.raises(ValueError, match=r"SD1\.x.*SD2\.x"):
        tiny.sample(patched, tiny.prompt(2), tiny.prompt(3), tiny.latent(1, 2), torch.tensor(inversion.schedule))


@pytest.mark.parametrize(
    ("samples", "message"),
    [(torch.full((1, 4, 8, 8), math.nan), "fp32-vae"), (torch.zeros(1, 16, 8, 8), r"\(1, 16, 8, 8\)")],
)
def test_bad_latents_are_refused(samples, message):
    with pytest.raises(ValueError, match=message):
        DDIMInversion(5)(tiny.tiny_model(), {"samples": samples}, tiny.prompt(1))


def test_an_edited_model_is_not_inverted_with(inversion):
    patched = install(tiny.tiny_model(), ExactBackground(torch.ones(1, 8, 8, dtype=torch.bool)), inversion)
    with pytest.raises(ValueError, match="before the edit"):
        DDIMInversion(5)(patched, {"samples": tiny.latent(1)}, tiny.prompt(1))


@pytest.mark.parametrize(("height", "width"), [(8, 24), (17, 13), (10, 10)])
def test_any_size(height, width):
    inversion = make_inversion(tiny.tiny_model(), steps=2, height=height, width=width)
    assert inversion.latents.shape[-2:] == (height, width) and torch.isfinite(inversion.latents).all()
