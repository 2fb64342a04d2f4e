"""Plug-and-Play: maps and residual features of the source, each for its own share of the steps."""

from __future__ import annotations

import logging

import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine import install as engine
from attention_edit.attention.engine import residual
from attention_edit.attention.methods.background import ExactBackground
from attention_edit.attention.methods.pnp import PnP
from attention_edit.host.families import SD1, SD2, SDXL
from sources import FAMILIES, generated


def test_layers_and_blocks():
    for family, layers in ((SD1, range(8, 16)), (SDXL, range(44, 70))):
        attention = PnP().acts_on(family)[0]
        assert [la.index for la in attention.layers] == list(layers)
    for family in (SD1, SD2, SDXL):
        # The second block of the decoder's deepest level with attention.
        decoder = [la for la in family.layers if la.block[0] == "output"]
        number = decoder[0].block[1] + 1
        assert PnP().acts_on(family)[1].blocks == (("output", number),)
        assert max(la.scale for la in decoder) == next(la.scale for la in decoder if la.block[1] == number)


@FAMILIES
@pytest.mark.parametrize("packed", [False, True])
def test_own_features_are_the_identity(kind, v, packed):
    """The source's own prompt at guidance 1 from the same noise: what is injected is what is there."""
    model = tiny.tiny_model(kind, v)
    inversion, image = generated(model, kind, steps=2 if kind == "SDXL" else 3, guidance=1.0)
    out = edits.run(model, inversion, PnP(1.0, 1.0), kind=kind, positive=5, cfg=1.0, sampler="ddim", packed=packed)
    assert edits.difference(out, image) < 1e-4


def test_no_windows_are_the_stock_sampler_bit_for_bit(model, inversion):
    assert torch.equal(edits.run(model, inversion, PnP(0.0, 0.0)), edits.run(model, inversion))


@pytest.mark.parametrize("cfg", [0.0, 1.0], ids=["negative half", "positive half"])
@pytest.mark.parametrize("part", [PnP(0.5, 0.0), PnP(0.0, 0.8)], ids=["maps", "features"])
def test_both_parts_act_in_both_halves(model, inversion, part, cfg):
    """At these guidances the result is that of one half alone."""
    plain, edited, other = (
        edits.run(model, inversion, *controls, cfg=cfg, positive=positive)
        for controls, positive in (((), 2), ((part,), 2), ((part,), 4))
    )
    assert torch.equal(edited, other) == (cfg == 0), "the other half has a part in it"
    assert edits.difference(edited, plain) > 1e-3


@pytest.mark.parametrize("packed", [False, True])
def test_the_block_gives_the_sources_hidden_state_on_the_targets_skip(model, inversion, packed, monkeypatch):
    """out = skip(x_t) + h(x_s) in both target rows of block 4, and nothing else changes; the source's rows stay."""
    seen = []

    def spy(layer, x, emb, context, options, *rest):
        out = original(layer, x, emb, context, options, *rest)
        seen.append((options["block"], x, layer(x, emb), layer.skip_connection(x), out))
        return out

    original = residual.take_residual
    monkeypatch.setattr(engine, "PATCH", (residual.ResBlock, spy))
    edits.run(model, inversion, PnP(0.0, 1.0), packed=packed)
    others = [entry for entry in seen if entry[0] != ("output", 4)]
    assert others and all(torch.equal(plain, out) for _, _, plain, _, out in others)
    here = [entry for entry in seen if entry[0] == ("output", 4)]
    if packed:
        source, targets = here[-1], here[-1]
        first = next(i for i in range(3) if torch.equal(source[2][i], source[4][i]))
        hidden = (source[2] - source[3])[first]
        rows = [i for i in range(3) if i != first]
    else:
        source, targets = here[-2:]
        assert torch.equal(source[2], source[4])
        hidden, rows = (source[2] - source[3])[0], [0, 1]
    for row in rows:
        assert edits.difference(targets[4][row], targets[3][row] + hidden) < 1e-4
        assert edits.difference(targets[4][row], targets[2][row]) > 1e-3


@FAMILIES
def test_packed_and_separate_alike(kind, v):
    model = tiny.tiny_model(kind, v)
    inversion = edits.invert(model, kind, steps=2)
    separate, packed = (edits.run(model, inversion, PnP(), kind=kind, packed=p) for p in (False, True))
    assert edits.difference(packed, separate) < 1e-4


def test_a_lora_on_the_block_acts(model, inversion):
    """The block computes itself, so that weight patches reach it."""
    patched = model.clone()
    name = "diffusion_model.output_blocks.4.0.out_layers.3.weight"
    weight = model.model.diffusion_model.output_blocks[4][0].out_layers[3].weight
    patched.add_patches({name: (torch.randn(weight.shape),)}, 1.0)
    plain, with_lora = (edits.run(m, inversion, PnP()) for m in (model, patched))
    assert edits.difference(with_lora, plain) > 1e-3
    assert torch.equal(edits.run(model, inversion, PnP()), plain)


def test_evaluations(model, caplog):
    """The source ends with the longer window: 40 of 49 calls."""
    assert edits.planned(model, edits.recorded(model), PnP()) == (40, 98)
    assert edits.planned(model, edits.recorded(model), PnP(0.5, 0.0)) == (25, 98)
    with caplog.at_level(logging.INFO):
        edits.run(model, edits.recorded(model, steps=5), PnP(0.2, 0.4))
    assert "plans 10 UNet evaluations (2 source, 8 target): Plug-and-Play" in caplog.text
    assert "Attention Edit: 10 UNet evaluations" in caplog.text


@pytest.mark.parametrize(
    ("schedule", "first", "last"), [("linear", 1.0, 0.0), ("constant", 0.75, 0.75), ("exponential", 1.0, 0.00248)]
)
def test_schedules_of_the_negative_prompt(model, schedule, first, last):
    control = PnP(negative=tiny.prompt(8), schedule=schedule, alpha=0.75 if schedule == "constant" else 1.0)
    shares = [control.negative_share(step, 50) for step in range(50)]
    assert shares[0] == pytest.approx(first) and shares[-1] == pytest.approx(last, abs=1e-4)
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("packed", [False, True])
def test_a_second_negative_is_mixed_in(model, inversion, packed):
    """At share 1 it changes nothing, at share 0 it is the negative prompt; it too gets the source's features."""

    def edit(negative, alpha, own=3):
        control = PnP(negative=negative, schedule="constant", alpha=alpha)
        patched = engine.install(model, control, inversion, packed)
        patched = engine.pin(patched, inversion, tuple(inversion.schedule))
        return tiny.sample(patched, tiny.prompt(2), tiny.prompt(own), edits.run_start(), torch.tensor([14.6, 0.0]))

    plain = edit(None, 1.0)
    assert edits.difference(edit(tiny.prompt(8), 1.0), plain) < 1e-4
    assert edits.difference(edit(tiny.prompt(8), 0.0), edit(None, 1.0, own=8)) < 1e-4
    assert edits.difference(edit(tiny.prompt(8), 0.5), plain) > 1e-3


def test_a_second_negative_costs_one_row_per_step(model):
    control = PnP(negative=tiny.prompt(8))
    assert edits.planned(model, edits.recorded(model), control) == (40, 98 + 49)
    assert edits.planned(model, edits.recorded(model), control, cfg=1.0) == (40, 49)


def test_one_source_for_a_batch_and_an_exact_background(model, inversion):
    both = edits.run(model, inversion, PnP(), ExactBackground(edits.box()), batch=2)
    assert edits.difference(both[:1], edits.run(model, inversion, PnP(), ExactBackground(edits.box()))) < 1e-4
