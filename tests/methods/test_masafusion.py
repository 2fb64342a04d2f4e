"""MaSaFusion: its invariants."""

from __future__ import annotations

from dataclasses import replace

import adapters
import comfy.model_management
import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine import install as engine
from attention_edit.attention.methods.masafusion import INVERTED, NOISE, MaSaFusion
from attention_edit.host.guider import noise_like
from fusion_loop import REGION, images
from sources import FAMILIES, generated


@FAMILIES
def test_packed_and_separate_alike(kind, v):
    model = tiny.tiny_model(kind, v)
    inversion = edits.invert(model, kind, batch=2, steps=2)
    control = MaSaFusion(REGION)
    separate, packed = (edits.run(model, inversion, control, kind=kind, packed=p, batch=2) for p in (False, True))
    assert edits.difference(packed, separate) < 1e-4
    assert edits.difference(separate, edits.run(model, inversion, kind=kind, batch=2)) > 1e-2


@FAMILIES
def test_an_empty_region_is_the_source(kind, v):
    """A sampled source and its own negative prompt: what is predicted outside is what the source predicts."""
    model = tiny.tiny_model(kind, v)
    inversion, image = generated(model, kind, steps=3)
    for intermediate in (True, False):
        found = edits.run(model, inversion, MaSaFusion(edits.NONE, intermediate), kind=kind)
        assert edits.difference(found, image) < 1e-4


def test_a_full_region_without_an_intermediate_image_and_window_is_the_stock_sampler(model, inversion):
    stock = edits.run(model, inversion)
    assert torch.equal(edits.run(model, inversion, MaSaFusion(edits.ALL, False, end=0.0)), stock)


def test_a_full_region_draws_the_prompt_from_fresh_noise(model, inversion):
    """Both images begin there, so that the map is the target's own; and nothing depends on the source's prompt."""
    control = MaSaFusion(edits.ALL, seed=4)
    found, image = images(model, inversion, control)
    sigmas = torch.tensor(inversion.schedule)
    noise = noise_like(edits.run_start(), 4) * (1 + float(sigmas[0]) ** 2) ** 0.5
    start = model.get_model_object("latent_format").process_out(noise)
    stock = tiny.sample(model, tiny.prompt(2), tiny.prompt(3), start, sigmas)
    stock = stock / (1 + float(sigmas[-1]) ** 2) ** 0.5
    assert edits.difference(found, stock) < 1e-3 and edits.difference(image, stock) < 1e-3
    other = replace(inversion, conditioning=tiny.prompt(9))
    assert torch.equal(images(model, other, MaSaFusion(edits.ALL, seed=4))[0], found)


def first_prediction(model, inversion, control, positive=2):
    """The first step's prediction of the target; the run ends behind it."""
    seen = []
    patched = engine.pin(engine.install(model, control, inversion), inversion, tuple(inversion.schedule))
    start, stub = edits.run_start(), torch.tensor([14.6, 0.0])

    def callback(step, denoised, *_):
        seen.append(denoised.clone())
        comfy.model_management.interrupt_current_processing()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        tiny.sample(patched, tiny.prompt(positive), tiny.prompt(3), start, stub, callback=callback)
    comfy.model_management.interrupt_current_processing(False)
    (first,) = seen
    return first


def test_outside_the_region_a_step_does_not_depend_on_the_prompt_nor_the_intermediate_image(model, inversion):
    cells = REGION[:, ::8, ::8][:, None].expand(1, 4, -1, -1)
    plain = first_prediction(model, inversion, MaSaFusion(REGION, begins=NOISE))
    for other in (
        first_prediction(model, inversion, MaSaFusion(REGION, begins=NOISE), positive=8),
        first_prediction(model, inversion, MaSaFusion(REGION, begins=INVERTED)),
    ):
        assert torch.equal(other[~cells], plain[~cells])
        assert edits.difference(other[cells], plain[cells]) > 1e-3


def test_an_adapter_that_adds_nothing_is_none(model, inversion):
    nothing = adapters.with_control(tiny.prompt(2), adapters.t2i_adapter(scale=0.0))
    found = images(model, inversion, MaSaFusion(REGION), nothing)
    assert all(torch.equal(a, b) for a, b in zip(found, images(model, inversion, MaSaFusion(REGION)), strict=True))
