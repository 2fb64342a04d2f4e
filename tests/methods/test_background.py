"""Exact Background: the source's trajectory outside a mask at every step, and nothing of it inside."""

from __future__ import annotations

import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine.install import install, pin
from attention_edit.attention.masks.cells import resize
from attention_edit.attention.methods.background import ExactBackground
from attention_edit.attention.methods.cpam import CPAM


@pytest.fixture(scope="module")
def inversion(model):
    return edits.invert(model, steps=6)


def test_exact_background_is_exact_and_the_rest_is_free(model, inversion):
    changed = edits.box()
    cells = resize(changed, (tiny.SIZE, tiny.SIZE), "any")[0]
    image = model.get_model_object("latent_format").process_out(inversion.latents[0])
    out = edits.run(model, inversion, ExactBackground(changed))
    moved = (out - image).abs().amax(1)[0]
    assert float(moved[~cells].max()) < 1e-6
    assert float(moved[cells].min()) > 1e-3


@pytest.mark.parametrize("sampler", ["euler", "ddim"])
@pytest.mark.parametrize(
    ("kind", "v", "offset"),
    [("SD1", False, 0), ("SD1", False, 1), ("SD2", True, 0), ("SD2", True, 1), ("SDXL", False, 1)],
)
def test_exact_background_holds_every_step_and_not_the_last_alone(kind, v, offset, sampler):
    """What the sampler itself goes on from lies on the stored trajectory outside the mask."""
    model = tiny.tiny_model(kind, v)
    inversion = edits.invert(model, kind, offset=offset)
    cells = resize(edits.box(), (tiny.SIZE, tiny.SIZE), "any")[0]
    patched = install(model, ExactBackground(edits.box()), inversion)
    patched = install(patched, CPAM(edits.masks(), normal_share=0.0), inversion)
    patched = pin(patched, inversion, tuple(inversion.schedule))
    latents = []
    tiny.sample(
        patched,
        tiny.prompt(2, kind),
        tiny.prompt(3, kind),
        edits.run_start(),
        torch.tensor([14.6, 0.0]),
        sampler=sampler,
        callback=lambda i, x0, x, n: latents.append(x.clone()),
    )
    assert len(latents) == len(inversion.schedule) - 1
    for sigma, x in zip(inversion.schedule, latents, strict=False):
        stored = inversion.at(sigma)
        moved = (x - stored).abs().amax(1)[0] / float(stored.abs().max())
        assert float(moved[~cells].max()) < 1e-5


def test_exact_background_everywhere_gives_the_image(model, inversion):
    image = model.get_model_object("latent_format").process_out(inversion.latents[0])
    out = edits.run(model, inversion, ExactBackground(edits.NONE))
    assert edits.difference(out, image) < 1e-6


def test_exact_background_nowhere_is_the_stock_sampler(model, inversion):
    out = edits.run(model, inversion, ExactBackground(edits.ALL))
    assert torch.equal(out, edits.run(model, inversion))


def test_a_late_start_leaves_the_first_steps_alone(model, inversion):
    """Up to the start, the sampler's latents are those of a run without blending."""

    def path(*controls):
        latents = []
        patched = model
        for control in controls:
            patched = install(patched, control, inversion)
        patched = pin(patched, inversion, tuple(inversion.schedule))
        tiny.sample(
            patched,
            tiny.prompt(2),
            tiny.prompt(3),
            edits.run_start(),
            torch.tensor([14.6, 0.0]),
            callback=lambda i, x0, x, n: latents.append(x.clone()),
        )
        return latents

    free, late = path(), path(ExactBackground(edits.box(), start=0.5))
    same = [torch.equal(a, b) for a, b in zip(free, late, strict=True)]
    assert same[:4] == [True] * 4 and not same[-1]
