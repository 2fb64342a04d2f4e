"""Proximal guidance: what is left of the difference, and what is brought back to the source."""

from __future__ import annotations

import comfy.samplers
import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine import install as engine
from attention_edit.attention.methods.cpam import CPAM
from attention_edit.attention.methods.p2p import P2P, REFINE
from attention_edit.attention.methods.proximal import (
    HARD,
    RELEASED,
    SOFT,
    ProximalGuidance,
    ProximalHold,
    left_alone,
    proximal,
)
from attention_edit.inversion.negative_prompt import NegativePromptInversion
from attention_edit.inversion.reconstruct import reconstruct
from prompts import prompt


def difference(batch=2):
    return torch.randn(batch, 4, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_hard_keeps_what_is_above_the_quantile_and_no_more():
    given = difference()
    found = proximal(given, 0.75, HARD)
    for image, left in zip(given, found, strict=True):
        largest = image.abs().flatten().sort(descending=True).indices[:256]
        kept = torch.zeros(1024, dtype=torch.bool)
        kept[largest] = True
        assert torch.equal(left.flatten()[kept], image.flatten()[kept])
        assert not left.flatten()[~kept].any()


def test_soft_is_the_solution_of_the_proximal_problem():
    """argmin_p 0.5 (p - d)^2 + threshold |p|, by its optimality conditions."""
    given = difference()
    found = proximal(given, 0.75, SOFT)
    threshold = given.abs().flatten(1).float().quantile(0.75, dim=1).double()[:, None, None, None]
    left = found != 0
    assert torch.allclose((found - given + threshold * found.sign())[left], torch.tensor(0.0).double(), atol=1e-12)
    assert (given.abs() <= threshold).logical_or(left).all()


def test_the_released_rule_is_the_published_code_s():
    """Written out on both rows as there: the source's differences are zero under negative-prompt inversion."""
    given = difference(1)
    rows = torch.cat([torch.zeros_like(given), given])
    threshold = rows.abs().float().quantile(0.75).double()
    shrunk = rows - rows.clamp(-threshold, threshold)
    assert torch.allclose(proximal(given, 0.75, RELEASED), shrunk[1:])
    assert torch.equal(left_alone(given, 0.75, RELEASED), shrunk[1:].abs() <= threshold)
    soft = proximal(given, 0.75, SOFT)
    assert torch.equal(left_alone(given, 0.75, SOFT), soft == 0)
    assert (shrunk[1:] != 0).sum() > 1.9 * (soft != 0).sum()


def test_each_image_of_a_batch_has_its_own_quantile():
    given = difference()
    given[1] *= 100
    both = proximal(given, 0.75)
    assert torch.equal(both, torch.cat([proximal(given[i : i + 1], 0.75) for i in range(2)]))


@pytest.mark.parametrize(("kind", "v"), [("SD1", False), ("SD2", True), ("SDXL", False)])
def test_without_any_difference_negative_prompt_inversion_reconstructs(kind, v):
    """Quantile 1 leaves nothing to multiply: the source prompt alone draws, as without guidance."""
    model = tiny.tiny_model(kind, v)
    found = NegativePromptInversion()(model, edits.invert(model, kind, steps=3), None, 1.0).inversion
    with torch.inference_mode():
        alone = reconstruct(model, found, 1.0, None).latent
    out = edits.run(model, found, ProximalGuidance(1.0), kind=kind)
    assert edits.difference(out, alone) < 1e-3
    assert edits.difference(edits.run(model, found, kind=kind), alone) > 1e-2


def test_is_what_a_sampler_cfg_function_would_do(model, inversion):
    """Against the definition, put into the host's own hook for guidance."""

    def limited(args):
        cond, uncond = args["cond_denoised"], args["uncond_denoised"]
        return args["input"] - (uncond + args["cond_scale"] * proximal(cond - uncond, 0.75))

    other = model.clone()
    other.set_model_sampler_cfg_function(limited)
    ours = edits.run(model, inversion, ProximalGuidance(0.75))
    assert edits.difference(ours, edits.run(other, inversion)) < 1e-4
    assert edits.difference(ours, edits.run(model, inversion)) > 1e-2


def both(quantile=0.75, start=0.6):
    """Proximal guidance and its hold."""
    guidance = ProximalGuidance(quantile)
    return guidance, ProximalHold(guidance, start)


def held(model, inversion, monkeypatch, sampler="euler", start=0.5):
    """The result of a run whose mask of edited values is the left half, and how often the mask was made."""
    made = []

    def left_half(self, run, state, predictions):
        mask = torch.zeros_like(predictions["cond"])
        mask[..., : mask.shape[-1] // 2] = 1
        made.append(run.step)
        state.cells = mask
        return {}

    monkeypatch.setattr(ProximalGuidance, "combine", left_half)
    return edits.run(model, inversion, *both(start=start), sampler=sampler), made


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "ddim"])
def test_the_hold_restores_the_very_source(model, inversion, monkeypatch, sampler):
    out, made = held(model, inversion, monkeypatch, sampler)
    source = model.get_model_object("latent_format").process_out(inversion.latents[0])
    half = out.shape[-1] // 2
    assert made
    assert torch.allclose(out[..., half:], source[..., half:], atol=1e-5)
    assert edits.difference(out[..., :half], source[..., :half]) > 1e-2


def test_the_hold_reaches_the_network_before_the_end(model, inversion, monkeypatch):
    """The restored half is seen by the steps that follow, so that the other half differs too."""
    out, _ = held(model, inversion, monkeypatch, start=0.25)
    late, _ = held(model, inversion, monkeypatch, start=0.75)
    half = out.shape[-1] // 2
    assert edits.difference(out[..., :half], late[..., :half]) > 1e-3


def test_the_mask_is_what_was_left_and_one_cell_around(model, inversion, monkeypatch):
    seen = {}
    whole = ProximalGuidance.combine

    def spy(self, run, state, predictions):
        found = whole(self, run, state, predictions)
        seen[run.step] = (found["cond"] - predictions["uncond"], state.cells)
        return found

    monkeypatch.setattr(ProximalGuidance, "combine", spy)
    edits.run(model, inversion, *both(0.99))
    for found, mask in seen.values():
        rows = (found != 0).float()
        for y in range(mask.shape[-2]):
            for x in range(mask.shape[-1]):
                around = rows[..., max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].amax((-1, -2))
                assert torch.equal(mask[..., y, x], around)


def test_a_run_that_begins_late_holds_from_its_second_step(model, inversion):
    """Edit Setup's denoise cuts the first steps off: at the first one of the run nothing is known to be held."""
    patched = model
    for control in both(0.9, 0.25):
        patched = engine.install(patched, control, inversion)
    late = engine.pin(patched, inversion, tuple(inversion.schedule[-2:]))
    out = tiny.sample(late, tiny.prompt(2), tiny.prompt(3), edits.run_start(), torch.tensor([14.6, 0.0]))
    assert torch.isfinite(out).all()


def test_costs_nothing(model):
    record = edits.recorded(model)
    assert edits.planned(model, record, *both()) == (0, 98)


def test_goes_with_other_edits(model, inversion):
    """Packed and separate, and in the batch of a CPAM that reads the source."""
    controls = (CPAM(edits.masks(), normal_share=0.0), ProximalGuidance(0.75))
    apart, packed = (edits.run(model, inversion, *controls, packed=packed) for packed in (False, True))
    assert edits.difference(apart, packed) < 1e-3
    assert edits.difference(apart, edits.run(model, inversion, controls[0])) > 1e-3
    p2p = P2P(prompt("a cat"), prompt("a black cat"), REFINE)
    assert edits.difference(edits.run(model, inversion, p2p, *controls[1:]), edits.run(model, inversion, p2p)) > 1e-3


def test_a_run_without_guidance_is_refused(model, inversion):
    with pytest.raises(ValueError, match="Raise cfg"):
        edits.run(model, inversion, ProximalGuidance(), cfg=1.0)


def test_a_sampler_that_goes_on_from_a_copy_is_refused(model, inversion):
    for control in both():
        model = engine.install(model, control, inversion)
    sampler = comfy.samplers.KSAMPLER(copying_euler)
    model = engine.pin(model, inversion, tuple(inversion.schedule))
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(tiny.prompt(2), tiny.prompt(3))
    guider.set_cfg(7.5)
    start = edits.run_start()
    with pytest.raises(ValueError, match="a copy of it"), torch.inference_mode():
        guider.sample(torch.zeros_like(start), start, sampler, torch.tensor([14.6, 0.0]), seed=0)


def copying_euler(net, x, sigmas, extra_args=None, callback=None, disable=None):
    """Euler that shows the model a copy of its latent."""
    for i in range(len(sigmas) - 1):
        denoised = net(x.clone(), sigmas[i] * x.new_ones(len(x)), **extra_args)
        callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return x
