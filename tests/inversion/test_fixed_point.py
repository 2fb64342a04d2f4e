"""Fixed-point inversion takes the sampler's steps back; direct inversion's ablations are what they say."""

from __future__ import annotations

import logging
from itertools import pairwise

import edits
import pytest
import tiny
import torch
from attention_edit.inversion.direct import DirectInversion, pulled
from attention_edit.inversion.fixed_point import FixedPointInversion, refine
from attention_edit.inversion.reconstruct import reconstruct
from attention_edit.inversion.steps import alpha_of, ddim_step, invert, to_eps

SIGMAS = [0.1, 0.4, 1.0, 2.0, 4.0]


def network(strength=0.4):
    """A smooth nonlinear network in float64."""
    mix = torch.randn(64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 8

    def predict(z, sigma):
        return strength * torch.tanh(z.flatten(1) @ mix).view_as(z) * (1 + 0.1 * sigma)

    return predict


def image(batch=1):
    return torch.randn(batch, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def sampled(predict, noise, kind):
    """The sampler's steps from noise through SIGMAS to clean, by DDIM's formula."""
    visited = [noise]
    for high, low in pairwise(SIGMAS[::-1]):
        eps = to_eps(predict(visited[-1], high), visited[-1], alpha_of(high), kind)
        visited.append(ddim_step(visited[-1], eps, alpha_of(high), alpha_of(low)))
    return visited


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_sampling_takes_it_back(kind):
    predict = network(0.2)
    steps = refine(predict, image(), SIGMAS, kind, 1e-12, 200)
    assert all(step.residual[-1] <= 1e-12 for step in steps)
    back = sampled(predict, steps[-1].z, kind)
    for z, expected in zip(back[::-1], [image(), *(step.z for step in steps)], strict=True):
        assert torch.allclose(z, expected, rtol=1e-8, atol=1e-9)
    plain = sampled(predict, invert(predict, image(), SIGMAS, kind)[-1], kind)[-1]
    assert float((plain - image()).norm()) > 1e4 * float((back[-1] - image()).norm())


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_one_iteration_is_ddim_inversion(kind):
    predict = network()
    steps = refine(predict, image(), SIGMAS, kind, 0.0, 1)
    for step, z in zip(steps, invert(predict, image(), SIGMAS, kind)[1:], strict=True):
        assert torch.equal(step.z, z)


def test_it_settles_where_plain_repetition_runs_away():
    """A linear network for which repeating z' = step(z, noise(z')) overshoots by half as much again each time."""
    low, high = alpha_of(SIGMAS[0]), alpha_of(SIGMAS[1])
    share = (1 - high) ** 0.5 - (high / low) ** 0.5 * (1 - low) ** 0.5  # what a step takes of the noise

    def predict(z, sigma):
        return -1.5 / share * z

    z = image()
    changes = []
    for _ in range(20):
        landed = ddim_step(image(), predict(z, SIGMAS[1]), low, high)
        changes.append(float((landed - z).norm()))
        z = landed
    assert changes[-1] > 100 * changes[0]
    (step,) = refine(predict, image(), SIGMAS[:2], "eps", 1e-9, 60)
    assert step.residual[-1] <= 1e-9
    assert torch.allclose(ddim_step(step.z, predict(step.z, SIGMAS[1]), high, low), image(), rtol=1e-7, atol=1e-8)


def test_images_of_a_batch_are_alone():
    predict = network()
    both = refine(predict, image(2), SIGMAS, "eps", 1e-6, 50)
    for i in range(2):
        alone = refine(predict, image(2)[i : i + 1], SIGMAS, "eps", 1e-6, 50)
        for step, single in zip(both, alone, strict=True):
            assert torch.allclose(step.z[i : i + 1], single.z, rtol=1e-12)


def gentle_model(kind="SD1", v=False):
    """Random weights whose answer changes as gently with the latent as a trained model's."""
    model = tiny.tiny_model(kind, v)
    model.model.diffusion_model.out[2].weight.data.mul_(0.1)
    return model


@pytest.mark.parametrize(("kind", "v"), [("SD1", False), ("SD2", True), ("SDXL", False)])
def test_on_the_host(kind, v, caplog):
    model = gentle_model(kind, v)
    inversion = edits.invert(model, kind, steps=3)
    with torch.inference_mode(), caplog.at_level(logging.INFO):
        report = FixedPointInversion(tolerance=1e-5, iterations=12)(model, inversion, None, 1.0)
        found = report.inversion
        before, after = (reconstruct(model, record, 1.0, None) for record in (inversion, found))
    assert after.errors[-1] < 0.2 * before.errors[-1]
    assert torch.equal(found.latents[0], inversion.latents[0])
    rows = sum(len(step.residual) for step in report.steps)
    assert report.cost.forward == rows <= 2 * 12
    assert "plans 4 to 24 UNet evaluations" in caplog.text
    assert f"Fixed-point inversion: {rows} UNet evaluations" in caplog.text


def test_with_guidance():
    """The same guidance finds the image again; without it, guidance drives it away."""
    model = gentle_model()
    inversion = edits.invert(model, steps=3)
    with torch.inference_mode():
        report = FixedPointInversion(tolerance=1e-4, iterations=12)(model, inversion, tiny.prompt(3), 2.0)
        found = report.inversion
        before, after = (reconstruct(model, record, 2.0, tiny.prompt(3)) for record in (inversion, found))
    assert report.cost.forward == 2 * sum(len(step.residual) for step in report.steps)
    assert after.errors[-1] < 0.5 * before.errors[-1]


def test_what_does_not_go_is_refused(model, inversion):
    with pytest.raises(ValueError, match="negative prompt"):
        FixedPointInversion()(model, inversion, None, 7.5)
    with pytest.raises(ValueError, match="negative prompt"):
        DirectInversion(0.5)(model, inversion, None, 7.5)


def test_direct_inversion_pulls_by_a_share():
    predict = network()
    trajectory = invert(predict, image(), SIGMAS, "eps")[::-1]

    def guided(z, sigma):
        return 1.5 * predict(z, sigma)

    exact = pulled(guided, trajectory, SIGMAS[::-1], "eps", 1.0, 1)
    assert all(torch.equal(a, b) for a, b in zip(exact, trajectory, strict=True))
    none = pulled(guided, trajectory, SIGMAS[::-1], "eps", 0.0, 1)
    assert all(torch.allclose(a, b) for a, b in zip(none, sampled(guided, trajectory[0], "eps"), strict=True))
    half = pulled(guided, trajectory, SIGMAS[::-1], "eps", 0.4, 1)
    landed = sampled(guided, trajectory[0], "eps")[1]
    assert torch.allclose(half[1], landed + 0.4 * (trajectory[1] - landed))
    skipped = pulled(guided, trajectory, SIGMAS[::-1], "eps", 1.0, 2)
    assert [torch.equal(a, b) for a, b in zip(skipped, trajectory, strict=True)] == [True, True, False, True, False]


def test_direct_inversion_on_the_host(model, inversion):
    """At 1 and 1 it is the stored trajectory; at 0 the source branch drifts as a stock sampler does."""
    same = DirectInversion()(model, inversion, tiny.prompt(3), 7.5).inversion
    assert torch.equal(same.latents, inversion.latents)
    with torch.inference_mode():
        none = DirectInversion(0.0)(model, inversion, tiny.prompt(3), 7.5).inversion
        errors = reconstruct(model, inversion, 7.5, tiny.prompt(3)).errors
    assert torch.equal(none.latents[0], inversion.latents[0])
    for level, error in zip(range(len(errors) - 1, 0, -1), errors, strict=False):
        drift = (none.latents[level] - inversion.latents[level]).norm() / inversion.latents[level].norm()
        assert float(drift) == pytest.approx(error, rel=1e-4, abs=1e-6)
