"""The engine: rows, source branch, chaining, counting, and that nothing outlives a run."""

from __future__ import annotations

import copy
import logging

import comfy.controlnet
import comfy.model_management
import comfy.samplers
import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine import install as engine
from attention_edit.attention.engine.plan import plan_of
from attention_edit.attention.methods.background import ExactBackground
from attention_edit.attention.methods.cpam import CPAM
from attention_edit.host.families import FAMILIES, family_of
from attention_edit.host.marks import KEY


def called_blocks(model, kind):
    """(block, depth, tokens) of every self-attention in the order in which the UNet calls them."""
    seen = []

    def spy(n, context, value, eo):
        seen.append((eo["block"], eo["block_index"], n.shape[1]))
        return n, context, value

    probe = model.clone()
    probe.set_model_attn1_patch(spy)
    tiny.sample(probe, tiny.prompt(1, kind), tiny.prompt(1, kind), tiny.latent(0), torch.tensor([1.0, 0.0]), cfg=1.0)
    return seen


@pytest.mark.parametrize(("kind", "count"), [("SD1", 16), ("SD2", 16), ("SDXL", 70)])
def test_block_tables_are_the_hosts_call_order(kind, count):
    model = tiny.tiny_model(kind)
    layers = family_of(model).layers
    assert len(layers) == count
    expected = [(la.block, la.depth, (tiny.SIZE // la.scale) ** 2) for la in layers]
    assert called_blocks(model, kind) == expected
    assert [la.index for la in layers] == list(range(count))


def test_unknown_family_is_refused_by_name(model):
    other = model.clone()
    other.model = copy.copy(model.model)
    other.model.model_config = type("Hunyuan3Dv2", (), {})()
    with pytest.raises(ValueError, match=r"Hunyuan3Dv2.*SD1\.x, SD2\.x, SDXL"):
        family_of(other)
    assert [f.name for f in FAMILIES] == ["SD1.x", "SD2.x", "SDXL"]


@pytest.mark.parametrize(("kind", "v"), [("SD1", False), ("SD2", True), ("SDXL", False)])
@pytest.mark.parametrize("cfg", [1.0, 7.5])
def test_packed_equals_separate(kind, v, cfg):
    model = tiny.tiny_model(kind, v)
    inversion = edits.invert(model, kind, batch=2, steps=2)
    control = CPAM(edits.masks(), normal_share=0.0)
    separate, packed = (
        edits.run(model, inversion, control, kind=kind, cfg=cfg, packed=p, batch=2) for p in (False, True)
    )
    assert edits.difference(packed, separate) < 1e-4


def test_packed_with_prompts_of_other_lengths(model, inversion):
    """The host repeats 77 and 154 tokens to a common length; 231 next to 77 too."""
    for tokens in (154, 231):
        results = []
        for packed in (False, True):
            patched = engine.install(model, CPAM(edits.masks(), normal_share=0.0), inversion, packed)
            patched = engine.pin(patched, inversion, tuple(inversion.schedule))
            long = tiny.prompt(2, tokens=tokens)
            results.append(tiny.sample(patched, long, tiny.prompt(3), edits.run_start(), torch.tensor([14.6, 0.0])))
        assert edits.difference(results[1], results[0]) < 1e-4


def test_packed_survives_a_split_batch(model, inversion, monkeypatch):
    """Short of memory the host runs every row alone, the unconditional one first: before the source."""
    whole = edits.run(model, inversion, edits.SourceLook(), packed=True)
    monkeypatch.setattr(type(model), "get_free_memory", lambda self, device: 0)
    assert edits.difference(edits.run(model, inversion, edits.SourceLook(), packed=True), whole) < 1e-4


def test_batch_equals_singles(model):
    inversion = edits.invert(model, batch=2)
    control = CPAM(edits.masks(), normal_share=0.0)
    both = edits.run(model, inversion, control, batch=2)
    for i in range(2):
        single = type(inversion)(**{**vars(inversion), "latents": inversion.latents[:, i : i + 1]})
        assert edits.difference(both[i : i + 1], edits.run(model, single, control)) < 1e-4


def test_one_source_for_a_batch_of_edits(model, inversion):
    control = CPAM(edits.masks(), normal_share=0.0)
    for packed in (False, True):
        both = edits.run(model, inversion, control, batch=2, packed=packed)
        assert edits.difference(both[:1], edits.run(model, inversion, control)) < 1e-4


def test_a_batch_that_does_not_fit_is_an_error(model):
    inversion = edits.invert(model, batch=2)
    patched = engine.install(model, edits.SourceLook(), inversion)
    with pytest.raises(ValueError, match=r"2 image\(s\).*batch of 3"):
        tiny.sample(patched, tiny.prompt(2), tiny.prompt(3), tiny.latent(1, 3), torch.tensor(inversion.schedule))


def test_an_empty_window_is_the_stock_sampler_bit_for_bit(model, inversion):
    stock = edits.run(model, inversion)
    assert torch.equal(edits.run(model, inversion, edits.Idle()), stock)
    assert torch.equal(edits.run(model, inversion, CPAM(edits.masks(), end=0.0)), stock)
    assert torch.equal(edits.run(model, inversion, ExactBackground(edits.box(), start=1.0)), stock)


def test_the_model_connected_is_left_alone(model, inversion):
    before = tiny.sample(model, tiny.prompt(2), tiny.prompt(3), tiny.latent(4), torch.tensor(inversion.schedule))
    options = repr(model.model_options)
    edits.run(model, inversion, edits.SourceLook())
    after = tiny.sample(model, tiny.prompt(2), tiny.prompt(3), tiny.latent(4), torch.tensor(inversion.schedule))
    assert torch.equal(before, after) and repr(model.model_options) == options


def test_two_runs_are_equal_and_leave_nothing(model, inversion):
    patched = engine.install(model, CPAM(edits.masks()), inversion)
    patched = engine.pin(patched, inversion, tuple(inversion.schedule))

    def run():
        return tiny.sample(patched, tiny.prompt(2), tiny.prompt(3), edits.run_start(), torch.tensor([14.6, 0.0]))

    first = run()
    assert torch.equal(run(), first)
    assert plan_of(patched).controls and patched.model_options["transformer_options"][KEY] is plan_of(patched)


def test_an_interrupted_run_leaves_nothing(model, inversion):
    patched = engine.install(model, CPAM(edits.masks()), inversion)

    def run(callback=None):
        sigmas = torch.tensor(inversion.schedule)
        return tiny.sample(patched, tiny.prompt(2), tiny.prompt(3), tiny.latent(4), sigmas, callback=callback)

    fresh = run()

    def cancel(step, *_):
        if step == 1:
            comfy.model_management.interrupt_current_processing()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(cancel)
    comfy.model_management.interrupt_current_processing(False)
    assert torch.equal(run(), fresh)


def test_evaluations_are_planned_logged_and_true(model, inversion, caplog):
    """Per step one source row and two target rows; 49 steps for 50, so 147 beside the inversion's 49."""
    inversion = edits.invert(model, steps=50)
    with caplog.at_level(logging.INFO):
        edits.run(model, inversion, CPAM(edits.masks()))
    assert "plans 147 UNet evaluations (49 source, 98 target): CPAM" in caplog.text
    assert "Attention Edit: 147 UNet evaluations" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        edits.run(model, inversion, CPAM(edits.masks(), end=0.5), cfg=1.0)
    # After its window the source is not run any more: 25 source rows, and one target row per step.
    assert "Attention Edit: 74 UNet evaluations" in caplog.text


@pytest.mark.parametrize("sampler", ["euler", "ddim", "dpmpp_2m", "heun", "dpm_2"])
def test_stock_samplers(model, sampler):
    """Heun and DPM2 also ask for noise levels between the stored ones."""
    inversion = edits.invert(model, steps=10)
    out = edits.run(model, inversion, CPAM(edits.masks()), ExactBackground(edits.box()), sampler=sampler)
    assert torch.isfinite(out).all()
    image = model.get_model_object("latent_format").process_out(inversion.latents[0])
    outside = ~edits.box()[:, ::8, ::8]
    kept = (out - image).abs().amax(1)[outside]
    assert float(kept.max()) < 1e-5


def test_two_edits_read_one_inversion(model, inversion):
    patched = engine.install(model, edits.SourceLook(), inversion)
    with pytest.raises(ValueError, match="different inversions"):
        engine.install(patched, edits.SourceLook(), edits.invert(model, steps=5))
