"""Null-text inversion on random models of every kind: what the paper promises, with exact counts."""

from __future__ import annotations

import logging
from dataclasses import replace

import comfy.model_management
import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine.install import install, pin
from attention_edit.attention.methods.background import ExactBackground
from attention_edit.attention.methods.fpe import FPE
from attention_edit.inversion import null_text
from attention_edit.inversion.null_text import NullTextInversion
from attention_edit.inversion.reconstruct import reconstruct

KINDS = [("SD1", False), ("SD2", True), ("SDXL", False)]


def run(model, inversion, kind="SD1", **settings):
    with torch.inference_mode():
        found = NullTextInversion(**settings)(model, inversion, tiny.prompt(3, kind), 7.5)
        return found.inversion, found


def test_warm_start_is_the_source_prompt(model, inversion):
    found = run(model, inversion, inner=0, warm_start=True)[0]
    assert torch.equal(found.null_states[0, 0], inversion.conditioning[0][0][0])
    cold = run(model, inversion, inner=0)[0]
    assert found.errors[-1] < cold.errors[-1]


@pytest.mark.parametrize(("kind", "v"), KINDS)
def test_guided_sampling_comes_nearer_to_the_image(kind, v):
    """And as near as its own walk came: the record holds all that a sampler needs."""
    model = tiny.tiny_model(kind, v)
    inversion = edits.invert(model, kind, steps=3)
    found, report = run(model, inversion, kind, inner=2, learning_rate=0.1, keep_best=True, checkpointing=False)
    with torch.inference_mode():
        plain = reconstruct(model, inversion, 7.5, tiny.prompt(3, kind))
        ours = reconstruct(model, found, 7.5, None)
    assert ours.errors[-1] < plain.errors[-1]
    assert ours.errors == pytest.approx(found.errors, rel=1e-3, abs=1e-5)
    for step in report.steps:
        assert step.final[0] <= step.losses[0][0]


@pytest.mark.parametrize(("kind", "v"), KINDS)
def test_a_stock_sampler_uses_the_null_text(kind, v):
    """Euler on the pinned model, with the source prompt and any negative prompt, follows the same walk."""
    model = tiny.tiny_model(kind, v)
    found, report = run(model, edits.invert(model, kind, steps=3), kind, inner=1, checkpointing=False)
    pinned = pin(model, found, tuple(found.schedule))
    start, stub = edits.run_start(), torch.tensor([14.6, 0.0])
    out = tiny.sample(pinned, tiny.prompt(5, kind), tiny.prompt(9, kind), start, stub)
    expected = model.get_model_object("latent_format").process_out(report.steps[-1].z)
    assert edits.difference(out, expected) < 1e-3


def test_nothing_is_left_on_the_model(model, inversion):
    with torch.inference_mode():
        loaded = tiny.tiny_model()
    before = edits.run(loaded, inversion)
    run(loaded, inversion, inner=2)
    assert torch.equal(edits.run(loaded, inversion), before)


def test_checkpointing_finds_the_same(model):
    inversion = edits.invert(model, steps=3)
    kept, again = (run(model, inversion, inner=2, checkpointing=c)[0] for c in (False, True))
    assert torch.allclose(kept.null_states, again.null_states, atol=1e-5)


def test_evaluations_are_planned_counted_and_true(model, caplog):
    """Per step one with the prompt, N with their way back, and one to go on: 49 steps for 50."""
    inversion = edits.invert(model, steps=5)
    with caplog.at_level(logging.INFO):
        _, report = run(model, inversion, inner=2, early_stop=0.0, checkpointing=False)
    assert (report.cost.forward, report.cost.backward) == (4 * 4, 4 * 2) == NullTextInversion(inner=2).planned(4, 1)
    assert "plans at most 16 UNet evaluations and 8 backward" in caplog.text
    assert "Null-text inversion: 16 UNet evaluations and 8 backward" in caplog.text
    assert NullTextInversion().planned(49, 1) == (588, 490)


def test_cancel_stops_and_leaves_nothing(model, inversion, monkeypatch):
    calls = []

    def interrupt(*arguments):
        calls.append(1)
        if len(calls) == 3:
            comfy.model_management.interrupt_current_processing()
        return gradient(*arguments)

    gradient = null_text.gradient
    before = edits.run(model, inversion)
    monkeypatch.setattr(null_text, "gradient", interrupt)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(model, inversion, early_stop=0.0)
    comfy.model_management.interrupt_current_processing(False)
    assert len(calls) == 3
    assert torch.equal(edits.run(model, inversion), before)


def test_batch_equals_singles(model):
    inversion = edits.invert(model, batch=2, steps=3)
    both, _ = run(model, inversion, inner=2, early_stop=0.0)
    assert both.null_states.shape[1] == 2
    for i in range(2):
        single = replace(inversion, latents=inversion.latents[:, i : i + 1])
        alone, _ = run(model, single, inner=2, early_stop=0.0)
        assert torch.allclose(both.null_states[:, i : i + 1], alone.null_states, atol=1e-4)


def test_a_packed_source_reads_the_null_text_of_its_step(model, inversion):
    """Another one in every step, in the source's unconditional half too."""
    count = len(inversion.sigmas) - 1
    states = torch.stack([tiny.prompt(10 + i)[0][0] for i in range(count)])
    record, control = replace(inversion, null_states=states), FPE(both_halves=True)
    apart, packed = (edits.run(model, record, control, packed=packed) for packed in (False, True))
    assert edits.difference(packed, apart) < 1e-4
    same = replace(inversion, null_states=states[:1].expand(count, -1, -1, -1))
    assert edits.difference(edits.run(model, same, control), apart) > 1e-3


def test_prompts_of_other_lengths(model, inversion):
    """The host repeats 77 and 154 tokens to a common length; the null text with them."""
    found, _ = run(model, inversion, inner=1)
    pinned = pin(model, found, tuple(found.schedule))
    start, stub = edits.run_start(), torch.tensor([14.6, 0.0])
    short = tiny.sample(pinned, tiny.prompt(2), tiny.prompt(3), start, stub)
    prompt = tiny.prompt(2)
    twice = [[torch.cat([prompt[0][0]] * 2, dim=1), {}]]
    assert edits.difference(tiny.sample(pinned, twice, tiny.prompt(3), start, stub), short) < 1e-4


def test_what_does_not_fit_is_refused(model, inversion):
    patched = install(model, ExactBackground(edits.box()), inversion)
    with pytest.raises(ValueError, match="before the edit"):
        run(patched, inversion)
    with pytest.raises(ValueError, match=r"SD2\.x"):
        run(tiny.tiny_model("SD2", True), inversion)
    with pytest.raises(ValueError, match="3 texts"), torch.inference_mode():
        NullTextInversion()(model, inversion, tiny.prompt(3, batch=3), 7.5)
    with pytest.raises(ValueError, match=r"null text has shape"):
        replace(inversion, null_states=torch.zeros(7, 1, 77, tiny.CONTEXT))


def test_another_guidance_is_warned_of(model, inversion, caplog):
    found, _ = run(model, inversion, inner=0)
    edits.run(model, found, cfg=7.5)
    assert "optimised for guidance" not in caplog.text
    edits.run(model, found, cfg=3.0)
    assert "optimised for guidance 7.5, but the sampler runs at 3" in caplog.text


@pytest.mark.parametrize("packed", [False, True])
def test_a_null_text_that_is_the_negative_prompt_changes_nothing(model, inversion, packed):
    """In both halves of the source and in those of the target: the states come to the same rows."""
    states = tiny.prompt(3)[0][0].expand(len(inversion.sigmas) - 1, 1, -1, -1)
    control = FPE(both_halves=True)
    ours = edits.run(model, replace(inversion, null_states=states), control, packed=packed)
    assert torch.equal(ours, edits.run(model, inversion, control, packed=packed))
