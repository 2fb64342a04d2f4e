"""Null-text and negative-prompt inversion: what the papers promise, on random models, with exact counts."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import pairwise

import comfy.model_management
import edits
import pytest
import tiny
import torch
from attention_edit.attention import engine
from attention_edit.attention.background import ExactBackground
from attention_edit.attention.cpam import CPAM
from attention_edit.attention.fpe import FPE
from attention_edit.inversion import null_text
from attention_edit.inversion.ddim import alpha_of, ddim_step
from attention_edit.inversion.negative_prompt import negative_prompt_inversion, slerp
from attention_edit.inversion.null_text import Settings, null_text_inversion, optimise
from attention_edit.inversion.run import reconstruct

KINDS = [("SD1", False), ("SD2", True), ("SDXL", False)]


def run(model, inversion, kind="SD1", **settings):
    with torch.inference_mode():
        return null_text_inversion(model, inversion, tiny.prompt(3, kind), Settings(**settings))


class Linear:
    """A network whose noise is linear in z and text, in float64, so that everything about it is known."""

    def __init__(self, same=False):
        rng = torch.Generator().manual_seed(0)
        self.mix = torch.randn(12, 64, dtype=torch.float64, generator=rng) / 12
        self.text = torch.randn(2, 3, 4, dtype=torch.float64, generator=rng)
        self.text[1] /= 10  # so that the second image is nearer to its goal
        self.null = self.text.clone() if same else torch.zeros_like(self.text)
        self.z = torch.randn(2, 4, 4, 4, dtype=torch.float64, generator=rng)
        self.sigmas = [4.0, 2.0, 1.0, 0.5]

    def noise(self, z, sigma, text):
        return 0.3 * z + (text.flatten(1) @ self.mix).view_as(z) / sigma

    def trajectory(self, guidance=1.0):
        visited = [self.z]
        for high, low in pairwise(self.sigmas):
            eps_u, eps_c = (self.noise(visited[-1], high, text) for text in (self.null, self.text))
            visited.append(ddim_step(visited[-1], eps_u + guidance * (eps_c - eps_u), alpha_of(high), alpha_of(low)))
        return visited

    def optimise(self, trajectory=None, states=None, images=slice(None), **settings):
        trajectory = self.trajectory() if trajectory is None else trajectory
        text = self.text[images]
        return list(
            optimise(
                lambda z, sigma: self.noise(z, sigma, text),
                lambda z, sigma, states, chosen: self.noise(z, sigma, states),
                [z[images] for z in trajectory],
                (self.sigmas, 50, "eps"),
                (self.null if states is None else states)[images],
                Settings(**settings),
            )
        )


def test_agrees_with_the_official_loop_written_out():
    """Adam anew for each step, its rate, the pre-update stop: one image, by the definition of each."""
    net = Linear()
    ours = net.optimise(images=slice(0, 1), inner=6, early_stop=2e-3)
    trajectory, text = net.trajectory(), net.null[:1].clone()
    z, counts = net.z[:1], []
    for i, (high, low) in enumerate(pairwise(net.sigmas)):
        m = v = torch.zeros_like(text)
        eps_c = net.noise(z, high, net.text[:1])
        for j in range(6):
            text = text.detach().requires_grad_()
            eps_u = net.noise(z, high, text)
            landed = ddim_step(z, eps_u + 7.5 * (eps_c - eps_u), alpha_of(high), alpha_of(low))
            loss = torch.nn.functional.mse_loss(landed, trajectory[i + 1][:1])
            (g,) = torch.autograd.grad(loss, [text])
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            step = (m / (1 - 0.9 ** (j + 1))) / ((v / (1 - 0.999 ** (j + 1))).sqrt() + 1e-8)
            text = text.detach() - 1e-2 * (1 - i / 100) * step
            if loss < 2e-3 * (1 + 2 * i):
                break
        counts.append(j + 1)
        eps_u = net.noise(z, high, text)
        z = ddim_step(z, eps_u + 7.5 * (eps_c - eps_u), alpha_of(high), alpha_of(low))
        assert torch.allclose(ours[i].states, text, rtol=1e-9, atol=1e-12)
        assert torch.allclose(ours[i].z, z, rtol=1e-9, atol=1e-12)
    assert [len(step.losses) for step in ours] == counts


def test_the_default_rule_is_the_papers():
    settings = Settings()
    assert (settings.guidance, settings.inner, settings.keep_best, settings.warm_start) == (7.5, 10, False, False)
    assert settings.rate(0) == 1e-2 and settings.rate(49) == pytest.approx(5.1e-3)
    assert settings.bound(0) == 1e-5 and settings.bound(10) == pytest.approx(1e-5 + 2e-5 * 10)


def test_fewer_steps_follow_the_same_rule():
    """With 3 of 25 steps the second step is the paper's third."""
    net, seen = Linear(), []

    class Spy(Settings):
        def rate(self, i):
            seen.append(i)
            return super().rate(i)

    settings = Spy(inner=1)
    arguments = (net.trajectory(), (net.sigmas, 25, "eps"), net.null, settings)
    list(optimise(lambda z, s: net.noise(z, s, net.text), lambda z, s, t, _: net.noise(z, s, t), *arguments))
    assert seen == [0, 2, 4]


def test_no_updates_are_plain_guided_sampling():
    net = Linear()
    for step, z in zip(net.optimise(inner=0), net.trajectory(7.5)[1:], strict=True):
        assert torch.allclose(step.z, z, rtol=1e-12) and torch.equal(step.states, net.null)


def test_at_guidance_one_there_is_nothing_to_optimise():
    """The gradient is exactly zero, since the unconditional prediction has no weight."""
    for step in Linear().optimise(guidance=1.0, early_stop=0.0):
        assert torch.equal(step.states, Linear().null)


def test_a_text_that_already_lands_stays():
    net = Linear(same=True)
    for step in net.optimise():
        assert torch.equal(step.states, net.text) and max(step.final) < 1e-20


@pytest.mark.parametrize("learning_rate", [1e-2, 3.0])
def test_the_best_text_never_gets_worse(learning_rate):
    """With a rate at which Adam overshoots, too."""
    for step in Linear().optimise(keep_best=True, early_stop=0.0, learning_rate=learning_rate):
        for image in range(2):
            losses = [row[image] for row in step.losses]
            assert step.final[image] <= min(losses) <= losses[0]
    overshot = Linear().optimise(early_stop=0.0, learning_rate=3.0)
    assert any(step.final[0] > min(row[0] for row in step.losses) for step in overshot)


def test_images_of_a_batch_stop_alone():
    net = Linear()
    settings = {"inner": 8, "early_stop": 3e-3}
    both = net.optimise(**settings)
    alone = [net.optimise(images=slice(i, i + 1), **settings) for i in range(2)]
    for number, step in enumerate(both):
        for i in range(2):
            assert torch.allclose(step.states[i : i + 1], alone[i][number].states, rtol=1e-9)
    counts = [[len(step.losses) for step in one] for one in alone]
    assert counts[0] != counts[1]


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
    pinned = engine.pin(model, found, tuple(found.schedule))
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
    assert (report.cost.forward, report.cost.backward) == (4 * 4, 4 * 2) == Settings(inner=2).planned(4, 1)
    assert "plans at most 16 UNet evaluations and 8 backward" in caplog.text
    assert "Null-text inversion: 16 UNet evaluations and 8 backward" in caplog.text
    assert Settings().planned(49, 1) == (588, 490)


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


def test_prompts_of_other_lengths(model, inversion):
    """The host repeats 77 and 154 tokens to a common length; the null text with them."""
    found, _ = run(model, inversion, inner=1)
    pinned = engine.pin(model, found, tuple(found.schedule))
    start, stub = edits.run_start(), torch.tensor([14.6, 0.0])
    short = tiny.sample(pinned, tiny.prompt(2), tiny.prompt(3), start, stub)
    prompt = tiny.prompt(2)
    twice = [[torch.cat([prompt[0][0]] * 2, dim=1), {}]]
    assert edits.difference(tiny.sample(pinned, twice, tiny.prompt(3), start, stub), short) < 1e-4


def test_what_does_not_fit_is_refused(model, inversion):
    patched = engine.install(model, ExactBackground(edits.box()), inversion)
    with pytest.raises(ValueError, match="before the edit"):
        run(patched, inversion)
    with pytest.raises(ValueError, match=r"SD2\.x"):
        run(tiny.tiny_model("SD2", True), inversion)
    with pytest.raises(ValueError, match="3 texts"), torch.inference_mode():
        null_text_inversion(model, inversion, tiny.prompt(3, batch=3), Settings())
    with pytest.raises(ValueError, match=r"null text has shape"):
        replace(inversion, null_states=torch.zeros(7, 1, 77, tiny.CONTEXT))


def test_another_guidance_is_warned_of(model, inversion, caplog):
    found, _ = run(model, inversion, inner=0)
    edits.run(model, found, cfg=7.5)
    assert "optimised for guidance" not in caplog.text
    edits.run(model, found, cfg=3.0)
    assert "optimised for guidance 7.5, but the sampler runs at 3" in caplog.text


@pytest.mark.parametrize(("kind", "v"), KINDS)
def test_negative_prompt_inversion_makes_guidance_inert_for_the_source(kind, v):
    model = tiny.tiny_model(kind, v)
    inversion = edits.invert(model, kind, steps=3)
    found = negative_prompt_inversion(inversion, None, 0.0)
    with torch.inference_mode():
        unguided = reconstruct(model, inversion, 1.0, None)
        guided = reconstruct(model, found, 7.5, None)
    assert edits.difference(guided.latent, unguided.latent) < 1e-3
    # In a sampler node as well, whatever is connected as negative prompt.
    pinned = engine.pin(model, found, tuple(found.schedule))
    start, stub = edits.run_start(), torch.tensor([14.6, 0.0])
    out = tiny.sample(pinned, tiny.prompt(5, kind), tiny.prompt(9, kind), start, stub)
    assert edits.difference(out, unguided.latent) < 1e-3


def test_negative_prompt_inversion_equals_its_negative_prompt(model, inversion):
    """For an edit it is no more than the source prompt as negative prompt, in CPAM's null text too."""
    found = negative_prompt_inversion(inversion, None, 0.0)
    control = CPAM(edits.masks(), normal_share=0.0)
    ours = edits.run(model, found, control)
    patched = engine.install(model, control, inversion)
    patched = engine.pin(patched, inversion, tuple(inversion.schedule))
    stub = torch.tensor([14.6, 0.0])
    theirs = tiny.sample(patched, tiny.prompt(2), tiny.prompt(5), edits.run_start(), stub)
    assert torch.equal(ours, theirs)
    assert edits.difference(ours, edits.run(model, inversion, control)) > 1e-3


@pytest.mark.parametrize("packed", [False, True])
def test_a_null_text_that_is_the_negative_prompt_changes_nothing(model, inversion, packed):
    """In both halves of the source and in those of the target: the states come to the same rows."""
    states = tiny.prompt(3)[0][0].expand(len(inversion.sigmas) - 1, 1, -1, -1)
    control = FPE(both_halves=True)
    ours = edits.run(model, replace(inversion, null_states=states), control, packed=packed)
    assert torch.equal(ours, edits.run(model, inversion, control, packed=packed))


def test_interpolation(model, inversion):
    source, other = inversion.conditioning[0][0], tiny.prompt(3)[0][0]
    end = negative_prompt_inversion(inversion, tiny.prompt(3), 1.0).null_states[0]
    assert torch.allclose(end, other, atol=1e-5)
    middle = negative_prompt_inversion(inversion, tiny.prompt(3), 0.5).null_states[0]
    norm = middle.norm() / (source.norm() * other.norm()).sqrt()
    assert float(norm) == pytest.approx(1, abs=0.02)  # a straight line would pass at 0.7
    assert torch.equal(slerp(0.3, source, source), source)
    with pytest.raises(ValueError, match="connect an empty prompt"):
        negative_prompt_inversion(inversion, None, 0.5)
    with pytest.raises(ValueError, match=r"77 text tokens.*154"):
        negative_prompt_inversion(inversion, tiny.prompt(3, tokens=154), 0.5)
