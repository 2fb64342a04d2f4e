"""Proposed masks: where two prompts disagree about a noised image."""

from __future__ import annotations

import comfy.model_management
import comfy.sample
import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine import install as engine
from attention_edit.attention.masks.difference import diff_mask, heat_of
from comfy.patcher_extension import WrappersMP


def propose(model, latent=None, target=2, reference=3, kind="SD1", **options):
    latent = tiny.latent(1) if latent is None else latent
    with torch.inference_mode():
        prompts = (tiny.prompt(seed, kind) for seed in (target, reference))
        return diff_mask(model, {"samples": latent}, *prompts, **options)


def test_is_diffedits_difference(model):
    """By hand: the host's own predictions at half of the schedule, for two noises."""
    latent, format_ = tiny.latent(1), model.get_model_object("latent_format")
    sampling = model.get_model_object("model_sampling")
    sigma = float(sampling.sigma(torch.tensor(0.5 * 999.0)))
    total = 0
    for seed in (7, 8):
        x = format_.process_in(latent) + sigma * comfy.sample.prepare_noise(latent, seed)
        with torch.inference_mode():
            clean = [
                model.model.apply_model(
                    x, torch.tensor([sigma]), c_crossattn=tiny.prompt(p)[0][0], transformer_options={}
                )
                for p in (2, 3)
            ]
        total = total + ((x - clean[0]) / sigma - (x - clean[1]) / sigma).abs().mean(1)
    clamped = total.clamp(max=float(3 * total.mean()))
    heat = (clamped - clamped.min()) / (clamped.max() - clamped.min())
    found = propose(model, latent, maps=2, seed=7)
    exact = torch.nn.functional.interpolate(heat[None], size=(128, 128), mode="bilinear", align_corners=False)[0]
    assert torch.allclose(found.heat, exact, atol=1e-4)
    assert torch.equal(found.mask, found.heat > 0.5)
    assert 0 < float(found.mask.float().mean()) < 1


def test_the_seed_says_all(model):
    first, again, other = (propose(model, maps=2, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(first.heat, again.heat) and not torch.equal(first.heat, other.heat)


def test_the_last_seed_is_followed_by_the_first(model):
    """The widget goes up to 2^64 - 1, and each noise has the next seed."""
    around = propose(model, maps=2, seed=2**64 - 1)
    assert torch.isfinite(around.heat).all()
    assert not torch.equal(around.heat, propose(model, maps=1, seed=2**64 - 1).heat)


def test_evaluations_are_planned_and_true(model, caplog):
    rows = []

    def count(executor, x, *args, **kwargs):
        rows.append(len(x))
        return executor(x, *args, **kwargs)

    counted = model.clone()
    counted.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "count", count)
    with caplog.at_level("INFO"):
        found = propose(counted, tiny.latent(1, 2), maps=3)
    assert sum(rows) == 12 and "Difference Mask plans 12 UNet evaluations" in caplog.text
    assert found.mask.shape == (2, 128, 128)


def test_sizes_and_batches(model):
    """Each image is stretched by itself; any latent."""
    wide = tiny.latent(1, 2, 16, 24)
    both = propose(model, wide, maps=1)
    assert both.heat.shape == (2, 128, 192)
    assert all(float(heat.min()) < 0.05 and float(heat.max()) > 0.9 for heat in both.heat)


@pytest.mark.parametrize(("kind", "v"), [("SD2", True), ("SDXL", False)])
def test_other_families(kind, v):
    found = propose(tiny.tiny_model(kind, v), kind=kind, maps=1)
    assert torch.isfinite(found.heat).all() and found.mask.any()


def test_can_be_interrupted(model):
    fresh = propose(model, maps=2)
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        propose(model, maps=2)
    comfy.model_management.interrupt_current_processing(False)
    assert torch.equal(propose(model, maps=2).heat, fresh.heat)


def test_outliers_do_not_set_the_scale():
    difference = torch.ones(1, 8, 8)
    difference[0, :4] = 2.0
    difference[0, 0, 0] = 100.0
    heat = heat_of(difference, 3.0)
    mean = float(difference.mean())
    assert float(heat.max()) == 1 and float(heat.min()) == 0
    assert float(heat[0, 1, 1]) == pytest.approx(1 / (3 * mean - 1))


def test_bad_inputs(model, inversion):
    with pytest.raises(ValueError, match="say the same"):
        propose(model, target=2, reference=2, maps=1)
    with pytest.raises(ValueError, match="already carries edits"):
        propose(engine.install(model, edits.SourceLook(), inversion))
    with pytest.raises(ValueError, match="above 0 and below 1"):
        propose(model, strength=1.0)
    with pytest.raises(ValueError, match=r"\(1, 4, 2, 16, 16\)"):
        propose(model, torch.zeros(1, 4, 2, 16, 16))
    with pytest.raises(ValueError, match="NaN or infinite"):
        propose(model, torch.full((1, 4, 16, 16), float("nan")), maps=1)
