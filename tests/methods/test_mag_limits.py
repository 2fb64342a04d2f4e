"""MAG-Edit: what it refuses, its effort, its curve, and cancelling it."""

from __future__ import annotations

from dataclasses import replace

import comfy.model_management
import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine import slopes, span
from attention_edit.attention.engine.install import pin
from attention_edit.attention.engine.plan import plan_of
from attention_edit.attention.engine.results import Results
from attention_edit.attention.methods.fpe import FPE
from attention_edit.attention.methods.local_blend import LocalBlend
from attention_edit.attention.methods.mag.control import MAG
from attention_edit.attention.methods.mag.curve import Curve
from attention_edit.attention.methods.mag.install import EARLY, PRESETS, PUBLISHED, add_guidance
from attention_edit.attention.methods.mag.parts import drawn
from attention_edit.attention.methods.masactrl import MasaCtrl
from attention_edit.attention.methods.proximal import ProximalGuidance
from attention_edit.host.families import family_of
from attention_edit.host.work import FORWARD, work
from mag_runs import STUB, asked, guided, part, slope_of
from prompts import prompt
from waits import Waits

# What does not go.

OTHERS = [FPE(), MasaCtrl(), LocalBlend(prompt("a cat"), prompt("a dog"), ["cat"], ["dog"]), ProximalGuidance()]


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: other.name)
def test_other_methods_are_refused_with_the_reason(model, inversion, other):
    with pytest.raises(ValueError, match=rf"Prompt-to-Prompt, Plug-and-Play or CPAM.*carries {other.name}"):
        guided(model, inversion, part(), under=[other])


def test_a_generated_image_without_an_inversion(model):
    """Nothing is blended, and the words are guided all the same; a batch is its images."""
    start, sigmas = tiny.latent(4, 2), torch.tensor([10.0, 3.0, 1.0, 0.0])
    run = tiny.sample(add_guidance(model, part(scale=50.0)), tiny.prompt(2), tiny.prompt(3), start, sigmas)
    plain = tiny.sample(model, tiny.prompt(2), tiny.prompt(3), start, sigmas)
    assert edits.difference(run, plain) > 1e-4
    single = tiny.sample(add_guidance(model, part(scale=50.0)), tiny.prompt(2), tiny.prompt(3), start[1:], sigmas)
    assert edits.difference(run[1:], single) < 1e-4


@pytest.mark.parametrize("mask", [edits.box(3, 3, 2, 2), edits.ALL, torch.cat([edits.box(), edits.box(8, 8, 9, 9)])])
def test_small_full_and_per_image_masks_stay_finite(model, mask):
    inversion = edits.invert(model, batch=2, steps=2)
    out = guided(model, inversion, part(mask, iterations=1), batch=2)
    assert torch.isfinite(out).all()


def test_masks_that_do_not_fit_are_refused(model, inversion):
    with pytest.raises(ValueError, match="selects nothing"):
        drawn(torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match="another shape"):
        guided(model, inversion, part(torch.ones(1, 64, 16, dtype=torch.bool)))
    with pytest.raises(ValueError, match="3 masks"):
        guided(model, inversion, part(edits.box().expand(3, -1, -1)))


def test_another_prompt_than_that_of_the_words_is_refused(model, inversion):
    other = prompt("a cat")
    with pytest.raises(ValueError, match=r"77 text tokens.*154"):
        guided(model, inversion, part(prompt=prompt("cat " * 80)))
    states = tiny.prompt(2)[0][0]
    guided(model, inversion, part(prompt=replace(other, states=states)))
    with pytest.raises(ValueError, match=r"target_prompt is .a cat.*another prompt"):
        guided(model, inversion, part(prompt=replace(other, states=states * 1.5)))
    with pytest.raises(ValueError, match="looked up"):
        guided(model, inversion, MAG(((90,),), edits.box(), iterations=1))
    patched = pin(add_guidance(model, part(), inversion), inversion, tuple(inversion.schedule))
    with pytest.raises(ValueError, match="2 parts"):
        tiny.sample(patched, tiny.prompt(2) + tiny.prompt(6), tiny.prompt(3), edits.run_start(), STUB)


# Effort, curve, cancel.


def test_early_stop_leaves_a_step_when_updates_bring_too_little(model, inversion):
    """Everything is too little for a gain of one: one update, and the look that says so."""
    one = part(iterations=6, gain=1.0)
    guided(model, inversion, one)
    assert [len(points) for points in one.curve.steps] == [2, 2]
    never = part(iterations=3, gain=0.0)
    guided(model, inversion, never)
    assert [len(points) for points in never.curve.steps] == [3, 3]
    assert PRESETS[EARLY]["iterations"] * 3 == PRESETS[PUBLISHED]["iterations"]


def test_early_stop_leaves_each_image_by_itself(model):
    """A batch is its images: one that gains too little is left, whatever the others gain."""
    inversion = edits.invert(model, batch=2)
    one = part(iterations=5, gain=0.04, scale=20.0)
    both = guided(model, inversion, one, batch=2)
    counts = []
    for index in (0, 1):
        single = replace(inversion, latents=inversion.latents[:, index : index + 1])
        again = replace(one, curve=Curve())
        assert edits.difference(guided(model, single, again), both[index : index + 1]) < 1e-4
        counts.append([len(points) for points in again.curve.steps])
    assert counts[0] != counts[1], "both images end alike: nothing is shown"
    assert [len(points) for points in one.curve.steps] == [max(n) for n in zip(*counts, strict=True)]


def test_cancel_within_one_iteration_leaves_nothing(model, inversion):
    fresh = guided(model, inversion, part(iterations=5))

    class Cancelling(Curve):
        def add(self, *point):
            super().add(*point)
            if len(self.points) == 3:
                comfy.model_management.interrupt_current_processing()

    one = part(iterations=5, curve=Cancelling())
    patched = pin(add_guidance(model, one, inversion), inversion, tuple(inversion.schedule))
    options = repr(patched.model_options)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        tiny.sample(patched, tiny.prompt(2), tiny.prompt(3), edits.run_start(), STUB)
    comfy.model_management.interrupt_current_processing(False)
    assert len(one.curve.points) == 3
    assert repr(patched.model_options) == options and len(plan_of(patched).controls) == 2
    assert torch.equal(guided(model, inversion, part(iterations=5)), fresh)


def test_cost_is_told_from_the_share_of_the_unet_that_runs(model):
    """An iteration on coarse maps is worth less than one evaluation there and back."""
    sd1 = family_of(model)
    # As demo/benchmark.py mag counts it on a full-size UNet.
    assert work(sd1, 4, False) == pytest.approx(1.07, abs=0.01)
    assert work(sd1, 4, True) > work(sd1, 4, False) > FORWARD["SD1.x"][4]
    with pytest.raises(ValueError, match="1/3"):
        asked(model, slope_of, detail=3)


# Waits for the device, and what is read in them.


def waits(model, inversion, monkeypatch, **values):
    """Waits of a whole run that follows on none, and the number of its iterations."""
    monkeypatch.setattr(span, "_ENDED", Results("No run has ended yet."))
    one = part(scale=50.0, **values)
    with Waits() as counted:
        guided(model, inversion, one)
    return counted.count, len(one.curve.points)


@pytest.mark.parametrize("gain", [0.0, 1e-9])
def test_an_iteration_waits_for_the_device_once(model, inversion, gain, monkeypatch):
    few, more = (waits(model, inversion, monkeypatch, iterations=iterations, gain=gain) for iterations in (2, 5))
    assert (few[1], more[1]) == (4, 10)
    assert more[0] - few[0] == more[1] - few[1]


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_a_slope_that_is_not_finite_is_told(model, inversion, broken, monkeypatch):
    """An iteration late, and the last one's at the end: never lost, and the latent goes no further."""
    found, real = [], slopes.gradient

    def gradient(value, inputs):
        (g,) = real(value, inputs)
        found.append(g)
        return (g.fill_(float("nan")) if len(found) == broken + 1 else g,)

    monkeypatch.setattr(slopes, "gradient", gradient)
    with pytest.raises(ValueError, match="not finite"):
        guided(model, inversion, part(iterations=3))
    assert len(found) == broken + 1


@pytest.mark.parametrize("iterations", [1, 3])
def test_a_slope_of_nothing_is_told(model, inversion, iterations, monkeypatch):
    """At a step's last iteration too."""
    real = slopes.gradient
    monkeypatch.setattr(slopes, "gradient", lambda *given: tuple(g.zero_() for g in real(*given)))
    with pytest.raises(ValueError, match="cannot reach"):
        guided(model, inversion, part(iterations=iterations))
