"""The background mask: the maps of the inversion itself, cut into clusters, those of no noun."""

from __future__ import annotations

from dataclasses import replace

import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine.install import install
from attention_edit.attention.maps import segments
from attention_edit.attention.maps.recorder import recorder
from attention_edit.attention.methods.background import ExactBackground
from attention_edit.attention.methods.dpl.background import Clustering, background_regions
from attention_edit.host.families import family_of
from attention_edit.inversion.ddim_inversion import DDIMInversion
from tiny_clip import encoded, tiny_clip

TEXT = "a cat and a dog"
NOUNS = {"cat": (2,), "dog": (5,)}


def inverted(kind, model, recording=False, batch=1):
    """A random image inverted with the prompt, and what a recorder saw meanwhile."""
    conditioning = encoded(tiny_clip(kind), TEXT, kind)
    control = recorder(edits.words(TEXT), family_of(model), (4,), (2,), 0.0, 1.0)
    with torch.inference_mode():
        seen = install(model, control) if recording else model
        record = DDIMInversion(4, 0)(seen, {"samples": tiny.latent(1, batch)}, conditioning).inversion
    return record, control


@pytest.mark.parametrize(("kind", "v"), [("SD1", False), ("SD2", True), ("SDXL", False)])
def test_its_maps_are_those_of_the_inversion(kind, v):
    model = tiny.tiny_model(kind, v)
    record, control = inverted(kind, model, recording=True)
    with torch.inference_mode():
        (found,), cost = background_regions(model, record, edits.words(TEXT), NOUNS, Clustering(clusters=3))
    (expected,) = segments.find_segments(control.maps.recording, 3, NOUNS)
    assert torch.allclose(found.features, expected.features, atol=1e-6)
    assert torch.equal(found.labels, expected.labels) and found.words == expected.words
    assert torch.equal(found.background(), expected.background())
    assert cost.forward == len(record.sigmas) - 1


def test_one_for_each_image_of_a_batch(model):
    record, _ = inverted("SD1", model, batch=2)
    prompt = edits.words(TEXT)
    with torch.inference_mode():
        both, cost = background_regions(model, record, prompt, NOUNS)
        alone = [
            background_regions(model, replace(record, latents=record.latents[:, i : i + 1]), prompt, NOUNS)[0][0]
            for i in range(2)
        ]
    assert cost.forward == 2 * (len(record.sigmas) - 1)
    for one, other in zip(both, alone, strict=True):
        assert torch.allclose(one.features, other.features, atol=1e-5)


def test_the_more_agreement_is_asked_the_more_is_background(model):
    record, _ = inverted("SD1", model)
    with torch.inference_mode():
        shares = [
            float(
                background_regions(model, record, edits.words(TEXT), NOUNS, Clustering(least=least))[0][0]
                .background()
                .float()
                .mean()
            )
            for least in (0.0, 0.5, 1.01)
        ]
    assert shares[0] == 0 and shares[0] <= shares[1] <= shares[2] == 1


def test_what_does_not_fit_is_refused(model):
    record, _ = inverted("SD1", model)
    prompt = edits.words(TEXT)
    with pytest.raises(ValueError, match="background mask already carries edits"):
        background_regions(install(model, ExactBackground(edits.box()), record), record, prompt, NOUNS)
    with pytest.raises(ValueError, match=r"made with an SD1\.x"):
        background_regions(tiny.tiny_model("SD2", True), record, prompt, NOUNS)
    with pytest.raises(ValueError, match="no background: a, cat, and, a, dog"):
        background_regions(model, record, prompt, {})
    long = edits.words("one two three four five six seven eight nine ten " * 10)
    with pytest.raises(ValueError, match="has 77 text tokens"), torch.inference_mode():
        background_regions(model, record, long, {"one": (1,)})
