"""MaSaFusion: its algorithms against a loop written out with hooks of the host alone, and its invariants."""

from __future__ import annotations

from dataclasses import replace

import adapters
import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine import install as engine
from attention_edit.attention.methods.background import ExactBackground
from attention_edit.attention.methods.fpe import FPE
from attention_edit.attention.methods.masafusion import INVERTED, MIXED, NOISE, MaSaFusion
from attention_edit.host.families import FAMILIES as ALL_FAMILIES
from attention_edit.host.families import SD1
from attention_edit.host.guider import noise_like
from fusion_loop import WrittenOut
from sources import FAMILIES, generated

REGION = edits.box()


def run(model, inversion, control, positive=None, **given):
    """The target and the intermediate image, with the prompt of seed 2."""
    sampled = edits.run(model, inversion, control, **given) if positive is None else None
    if sampled is None:
        patched = engine.install(model, control, inversion, given.get("packed", False))
        patched = engine.pin(patched, inversion, tuple(inversion.schedule))
        stub = torch.tensor([14.6, 0.0])
        sampled = tiny.sample(patched, positive, tiny.prompt(3), edits.run_start(), stub)
    return sampled, None if control.drawn.empty else control.drawn.of({"samples": sampled})


CONDITIONS = {
    "none": lambda: tiny.prompt(2),
    "t2i": lambda: adapters.with_control(tiny.prompt(2), adapters.t2i_adapter()),
    "controlnet": lambda: adapters.with_control(tiny.prompt(2), adapters.control_net()),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("condition", CONDITIONS)
def test_algorithm_1_written_out(model, inversion, condition, packed):
    control = MaSaFusion(REGION, seed=4)
    expected = WrittenOut(model, inversion, control, CONDITIONS[condition]()).run()
    found = run(model, inversion, control, CONDITIONS[condition](), packed=packed)
    for a, b in zip(found, expected, strict=True):
        assert edits.difference(a, b) < 1e-3, "one rounding of a guided step, times guidance and steps"


@pytest.mark.parametrize("begins", [MIXED, INVERTED])
def test_the_starts_of_figure_4(model, inversion, begins):
    control = MaSaFusion(REGION, seed=4, begins=begins)
    for a, b in zip(
        run(model, inversion, control), WrittenOut(model, inversion, control, tiny.prompt(2)).run(), strict=True
    ):
        assert edits.difference(a, b) < 1e-3


def test_algorithm_5_written_out(model, inversion):
    control = MaSaFusion(REGION, intermediate=False)
    expected, _ = WrittenOut(model, inversion, control, tiny.prompt(2)).run()
    found, image = run(model, inversion, control)
    assert edits.difference(found, expected) < 1e-3 and image is None


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
    found, image = run(model, inversion, control)
    sigmas = torch.tensor(inversion.schedule)
    noise = noise_like(edits.run_start(), 4) * (1 + float(sigmas[0]) ** 2) ** 0.5
    start = model.get_model_object("latent_format").process_out(noise)
    stock = tiny.sample(model, tiny.prompt(2), tiny.prompt(3), start, sigmas)
    stock = stock / (1 + float(sigmas[-1]) ** 2) ** 0.5
    assert edits.difference(found, stock) < 1e-3 and edits.difference(image, stock) < 1e-3
    other = replace(inversion, conditioning=tiny.prompt(9))
    assert torch.equal(run(model, other, MaSaFusion(edits.ALL, seed=4))[0], found)


def test_from_one_start_the_target_is_the_intermediate_image(model, inversion):
    """x_i = x_t: the map that it is given is its own."""
    found, image = run(model, inversion, MaSaFusion(REGION, begins=MIXED))
    assert edits.difference(found, image) < 1e-3


def first_prediction(model, inversion, control, positive=2):
    """The first step's prediction of the target."""
    seen = []
    patched = engine.pin(engine.install(model, control, inversion), inversion, tuple(inversion.schedule))
    start, stub = edits.run_start(), torch.tensor([14.6, 0.0])

    def callback(step, denoised, *_):
        seen.append(denoised.clone())

    tiny.sample(patched, tiny.prompt(positive), tiny.prompt(3), start, stub, callback=callback)
    return seen[0]


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
    found, image = run(model, inversion, MaSaFusion(REGION), nothing)
    plain, plain_image = run(model, inversion, MaSaFusion(REGION))
    assert torch.equal(found, plain) and torch.equal(image, plain_image)


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
def test_every_setting_has_an_effect(model, inversion, changed):
    plain = edits.run(model, inversion, MaSaFusion(REGION))
    assert edits.difference(edits.run(model, inversion, MaSaFusion(REGION, **changed)), plain) > 1e-3


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
