"""Free-Prompt-Editing and what all injections share: source maps, both halves, generated sources, exclusions."""

from __future__ import annotations

import logging

import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine import install as engine
from attention_edit.attention.engine.acts import Site
from attention_edit.attention.engine.layers import ALL, PAPER, RESOLUTION, layers_of
from attention_edit.attention.methods.background import ExactBackground
from attention_edit.attention.methods.cpam import CPAM
from attention_edit.attention.methods.fpe import FPE
from attention_edit.host.families import SD1, SDXL
from calls import Spy, reference
from sources import FAMILIES, generated


def indices(family, rule):
    return [layer.index for layer in layers_of(family, rule)]


def test_layers():
    assert indices(SD1, RESOLUTION) == list(range(2, 13))
    assert indices(SD1, PAPER) == list(range(3, 14))
    assert indices(SD1, ALL) == list(range(16))
    assert indices(SD1, "3-13") == list(range(3, 14)) and indices(SD1, " 7 ") == [7]
    assert indices(SDXL, RESOLUTION) == list(range(4, 64))


@pytest.mark.parametrize(
    ("family", "rule", "text"),
    [(SD1, "5-16", "0 to 15"), (SD1, "9-3", "9-3"), (SD1, "some", "3-13"), (SDXL, PAPER, "70")],
)
def test_layers_that_are_not_there(family, rule, text):
    with pytest.raises(ValueError, match=text):
        layers_of(family, rule)


@FAMILIES
@pytest.mark.parametrize("packed", [False, True])
def test_the_same_prompt_and_noise_give_the_source_at_every_step(kind, v, packed):
    model = tiny.tiny_model(kind, v)
    inversion, image = generated(model, kind, steps=2 if kind == "SDXL" else 4)
    seen = []
    patched = engine.install(model, FPE(end=1.0), inversion, packed)
    patched = engine.pin(patched, inversion, tuple(inversion.schedule))
    out = tiny.sample(
        patched,
        tiny.prompt(5, kind),
        tiny.prompt(3, kind),
        edits.run_start(),
        torch.tensor([14.6, 0.0]),
        callback=lambda step, x0, x, total: seen.append(x.clone()),
    )
    assert edits.difference(out, image) < 1e-4
    for x, sigma in zip(seen, inversion.schedule, strict=False):
        assert edits.difference(x, inversion.at(sigma)) < 1e-4


def test_a_generated_source_is_what_the_hosts_sampler_draws(model):
    inversion, image = generated(model)
    sigmas = torch.tensor(inversion.schedule)
    start = model.get_model_object("latent_format").process_out(inversion.at(float(sigmas[0])))
    plain = tiny.sample(model, tiny.prompt(5), tiny.prompt(3), start, sigmas, sampler="ddim")
    assert edits.difference(plain / (1 + inversion.sigmas[0] ** 2) ** 0.5, image) < 1e-4


def test_a_model_with_edits_draws_no_source(model, inversion):
    with pytest.raises(ValueError, match="already carries edits"):
        generated(engine.install(model, FPE(), inversion))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("halves", [False, True])
def test_the_targets_map_is_the_sources_and_its_values_are_its_own(model, packed, halves):
    inversion, _ = generated(model)
    spy = Spy(halves)
    edits.run(model, inversion, FPE(layers="2-3", both_halves=halves), spy, packed=packed)
    call, out = [(c, o) for c, o in spy.calls if c.layer.index == 3][-1]
    unconditional, conditional = (call.conditional.index(flag) for flag in (False, True))
    source = call.source
    assert source is not None
    for chunk in (unconditional, conditional):
        rows = call.rows(chunk)
        taken = chunk == conditional or halves
        weights, expected = reference(call, source.q[rows], source.k[rows], call.v[rows])
        own_weights, own = reference(call, call.q[rows], call.k[rows], call.v[rows])
        assert edits.difference(out[rows], expected if taken else own) < 1e-4
        assert edits.difference(own_weights, weights) > 1e-3
    different = edits.difference(source.q[call.rows(0)], source.q[call.rows(1)]) > 1e-4
    assert different == halves, "each half reads its own half of the source, or all read the prompt's"


@pytest.mark.parametrize("control", [FPE(end=0.0), FPE(end=0.001)])
def test_no_replaced_steps_is_the_stock_sampler_bit_for_bit(model, inversion, control):
    assert torch.equal(edits.run(model, inversion, control), edits.run(model, inversion))


@FAMILIES
def test_edits_packed_and_separate_alike(kind, v):
    model = tiny.tiny_model(kind, v)
    inversion, _ = generated(model, kind, steps=2)
    control = FPE(both_halves=True, end=1.0)
    separate, packed = (edits.run(model, inversion, control, kind=kind, packed=p) for p in (False, True))
    assert edits.difference(packed, separate) < 1e-4
    assert not torch.equal(separate, edits.run(model, inversion, kind=kind))


def test_both_halves_survive_a_split_batch(model, monkeypatch):
    inversion, _ = generated(model)
    whole = edits.run(model, inversion, FPE(both_halves=True), packed=True)
    monkeypatch.setattr(type(model), "get_free_memory", lambda self, device: 0)
    assert edits.difference(edits.run(model, inversion, FPE(both_halves=True), packed=True), whole) < 1e-4


def test_a_batch_with_both_halves_equals_singles(model):
    inversion = edits.invert(model, batch=2)
    for packed in (False, True):
        both = edits.run(model, inversion, FPE(both_halves=True), batch=2, packed=packed)
        for i in range(2):
            single = type(inversion)(**{**vars(inversion), "latents": inversion.latents[:, i : i + 1]})
            alone = edits.run(model, single, FPE(both_halves=True), packed=packed)
            assert edits.difference(both[i : i + 1], alone) < 1e-4


def test_evaluations(model, caplog):
    """One source row per step of the window; two with both halves, unless source and negative prompt are the same."""
    inversion, same = edits.recorded(model), edits.recorded(model, prompt_seed=3)
    # 50 steps are 49 calls; the source stops after step 40.
    assert edits.planned(model, inversion, FPE()) == (40, 98)
    assert edits.planned(model, inversion, FPE(end=1.0)) == (49, 98)
    assert edits.planned(model, inversion, FPE(both_halves=True)) == (80, 98)
    assert edits.planned(model, same, FPE(both_halves=True)) == (40, 98)
    assert edits.planned(model, inversion, FPE(both_halves=True), cfg=1.0) == (40, 49)
    with caplog.at_level(logging.INFO):
        edits.run(model, edits.recorded(model, steps=5), FPE(both_halves=True, end=0.4))
    assert "plans 12 UNet evaluations (4 source, 8 target): FPE" in caplog.text
    assert "Attention Edit: 12 UNet evaluations" in caplog.text


def test_features_are_kept_only_where_they_are_read(model, inversion, monkeypatch):
    from attention_edit.attention.engine import site as hooks

    kept = set()
    original = hooks.keep_features

    def spy(call, *features):
        original(call, *features)
        kept.update(call.run.captured)

    monkeypatch.setattr(hooks, "keep_features", spy)
    edits.run(model, inversion, FPE(layers="5-6"), Spy())
    assert kept == {(Site.SELF, 5), (Site.SELF, 6)}


def test_composes_with_exact_background(model, inversion):
    control = ExactBackground(edits.box())
    out = edits.run(model, inversion, FPE(), control)
    image = model.get_model_object("latent_format").process_out(inversion.latents[0])
    outside = ~edits.box()[:, ::8, ::8]
    assert float((out - image).abs().amax(1)[outside].max()) < 1e-5
    assert not torch.equal(out, edits.run(model, inversion, control))


@pytest.mark.parametrize(
    ("first", "second"), [(FPE(), CPAM(edits.masks())), (CPAM(edits.masks()), FPE()), (FPE(), FPE())]
)
def test_two_that_replace_the_same_attention_are_refused(model, inversion, first, second):
    patched = engine.install(model, first, inversion)
    with pytest.raises(
        ValueError, match=rf"{first.name} and {second.name} do not go together.*11 layers \(2 to 12\).*80%"
    ):
        engine.install(patched, second, inversion)


def test_windows_and_layers_set_apart_go_together(model, inversion):
    patched = engine.install(model, FPE(layers="2-5"), inversion)
    patched = engine.install(patched, FPE(layers="6-9"), inversion)
    assert len(engine.plan_of(patched).controls) == 2
    with pytest.raises(ValueError, match="do not go together"):
        engine.install(patched, FPE(layers="9-12"), inversion)
