"""MaSaFusion: its settings, its plan, its starts, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine import install as engine
from attention_edit.attention.methods.background import ExactBackground
from attention_edit.attention.methods.fpe import FPE
from attention_edit.attention.methods.masafusion import INVERTED, MaSaFusion
from attention_edit.host.families import FAMILIES as ALL_FAMILIES
from attention_edit.host.families import SD1
from attention_edit.host.guider import noise_like
from fusion_loop import REGION, images


@pytest.fixture(scope="module")
def plain(model, inversion):
    """The images that the published settings give."""
    return images(model, inversion, MaSaFusion(REGION))


@pytest.mark.parametrize(
    ("control", "planned"),
    [
        (MaSaFusion(REGION), (98, 392)),
        (MaSaFusion(REGION, intermediate=False), (98, 196)),
        (MaSaFusion(edits.NONE), (98, 98)),
        (MaSaFusion(edits.ALL), (0, 196)),
        (MaSaFusion(REGION, start=0.2, end=0.4), (20, 392)),
    ],
    ids=["algorithm 1", "algorithm 5", "empty", "full", "window"],
)
def test_no_row_feeds_nothing(model, control, planned):
    """50 steps call the network 49 times: both halves of the source, of each image, and of each of its prompts.

    Algorithm 5 stays below 300 beside the inversion, and what an empty or full region makes needless is not run.
    """
    assert edits.planned(model, edits.recorded(model), control) == planned
    same = edits.recorded(model, prompt_seed=3)
    halved = edits.planned(model, same, replace(control))
    assert halved == (planned[0] // 2, planned[1]), "one source row where both halves have one prompt"


@pytest.mark.parametrize("packed", [False, True])
def test_the_plan_is_kept(model, inversion, caplog, packed):
    with caplog.at_level("INFO"):
        edits.run(model, inversion, MaSaFusion(REGION), packed=packed)
    assert "plans 30 UNet evaluations (6 source, 24 target): MaSaFusion" in caplog.text
    assert "Attention Edit: 30 UNet evaluations" in caplog.text


def test_the_published_settings():
    for family in ALL_FAMILIES:
        acts = MaSaFusion(REGION).acts_on(family)
        assert len(acts) == 3 and all(act.during.of(50) == range(50) for act in acts)
        assert [act.layers[0].index for act in acts] == [44 if family.name == "SDXL" else 10] * 3
    assert MaSaFusion(REGION, layers="all").acts_on(SD1)[0].layers == SD1.layers


@pytest.mark.parametrize(
    "changed",
    [{"intermediate": False}, {"seed": 1}, {"begins": INVERTED}, {"layers": "3-13"}, {"start": 0.5}, {"end": 0.5}],
    ids=lambda changed: next(iter(changed)),
)
def test_every_setting_has_an_effect(model, inversion, plain, changed):
    assert edits.difference(edits.run(model, inversion, MaSaFusion(REGION, **changed)), plain[0]) > 1e-3


@pytest.mark.parametrize("keeps", [True, False])
def test_a_null_text_is_the_sources_or_everybodys(model, inversion, keeps):
    """The paper's empty prompt for the edit is the sampler's negative; the other way the null text takes its place."""
    null = replace(inversion, null_states=tiny.prompt(6)[0][0][None])
    control = MaSaFusion(REGION, keeps_negative=keeps)
    found = edits.run(model, null, control)
    patched = engine.pin(engine.install(model, control, null), null, tuple(null.schedule))
    other = tiny.sample(patched, tiny.prompt(2), tiny.prompt(7), edits.run_start(), torch.tensor([14.6, 0.0]))
    assert torch.equal(other, found) != keeps, "the sampler's negative counts where it is kept"
    plain = edits.run(model, inversion, MaSaFusion(REGION, keeps_negative=keeps))
    assert edits.difference(found, plain) > 1e-3, "the source's half reads the null text either way"


def test_a_later_start_begins_with_noise_on_the_image(model, inversion):
    schedule = tuple(inversion.schedule[1:])
    control = MaSaFusion(REGION)
    patched = engine.pin(engine.install(model, control, inversion), inversion, schedule)
    seen = []

    def callback(step, denoised, x, *_):
        seen.append(x.clone())

    tiny.sample(
        patched, tiny.prompt(2), tiny.prompt(3), edits.run_start(), torch.tensor([14.6, 0.0]), callback=callback
    )
    noise = noise_like(edits.run_start(), 0)
    wanted = torch.where(
        REGION[:, ::8, ::8][:, None], inversion.latents[0] + schedule[0] * noise, inversion.at(schedule[0])
    )
    assert edits.difference(seen[0], wanted) < 1e-5


def test_the_background_can_be_kept_exactly(model, inversion):
    found = edits.run(model, inversion, MaSaFusion(REGION), ExactBackground(REGION))
    image = model.get_model_object("latent_format").process_out(inversion.latents[0])
    outside = ~REGION[:, ::8, ::8]
    assert float((found - image).abs().amax(1)[outside].max()) < 1e-5


def test_what_does_not_go_together_is_refused(model, inversion):
    with pytest.raises(ValueError, match=r"FPE and MaSaFusion do not go together"):
        edits.run(model, inversion, FPE(), MaSaFusion(REGION))
    with pytest.raises(ValueError, match=r"region of MaSaFusion is 64x128"):
        edits.run(model, inversion, MaSaFusion(REGION[:, :, :64]))
