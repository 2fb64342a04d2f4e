"""MasaCtrl: mutual self-attention plain, masked, with masks from words, and in union."""

from __future__ import annotations

import logging

import comfy.controlnet
import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine import install as engine
from attention_edit.attention.masks.cells import resize
from attention_edit.attention.methods import masactrl as module
from attention_edit.attention.methods.cpam import CPAM
from attention_edit.attention.methods.masactrl import MasaCtrl, WordMasks
from attention_edit.attention.methods.p2p import P2P
from attention_edit.host.families import SD1
from calls import attend, make_call, masked_attention
from prompts import prompt
from sources import FAMILIES, generated

CAT, DOG = prompt("a cat on a mat"), prompt("a dog on a mat")
EVERYWHERE = MasaCtrl(start=0.0, first_layer=0)


def cells(mask):
    return resize(mask, (8, 8)).flatten(1)[0]


def test_the_target_reads_the_sources_keys_and_values():
    call = make_call(EVERYWHERE)
    expected = attend(call.q, call.source.k, call.source.v)
    assert torch.allclose(EVERYWHERE.attend(call), expected, rtol=1e-9)


def test_the_order_of_the_sources_tokens_does_not_matter():
    call = make_call(EVERYWHERE)
    before = EVERYWHERE.attend(call)
    order = torch.randperm(call.source.k.shape[1], generator=torch.Generator().manual_seed(1))
    call.source.k.copy_(call.source.k[:, order])
    call.source.v.copy_(call.source.v[:, order])
    assert torch.allclose(EVERYWHERE.attend(call), before, rtol=1e-9)


@pytest.mark.parametrize("batch", [1, 2])
def test_masks(batch):
    """fg reads M_s, bg the rest of the source, composed by M_t; each image of a batch has its own."""
    source = torch.cat([edits.box(), edits.box(64, 64, 32, 48)][:batch])
    target = torch.cat([edits.box(16, 24, 64, 40), edits.box(0, 0, 64, 64)][:batch])
    control = MasaCtrl(masks=(source, target))
    call = make_call(control, layer=12, batch=batch)
    out = control.attend(call)
    for item in range(batch):
        keys, inside = (cells(m[item : item + 1]) for m in (source, target))
        rows = slice(item, None, batch)
        q, k, v = call.q[rows], call.source.k[rows], call.source.v[rows]
        expected = torch.where(inside[None, :, None], masked_attention(q, k, v, keys), masked_attention(q, k, v, ~keys))
        assert torch.allclose(out[rows], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("union", [False, True])
@pytest.mark.parametrize("masks", [(edits.ALL, edits.ALL), (edits.NONE, edits.NONE), (edits.NONE, edits.ALL)])
def test_full_and_empty_masks_are_no_masks(masks, union):
    """A side of which the source has no keys reads them all."""
    plain, masked = MasaCtrl(union=union), MasaCtrl(masks=masks, union=union)
    assert torch.allclose(
        masked.attend(make_call(masked, layer=12)), plain.attend(make_call(plain, layer=12)), rtol=1e-9
    )


def test_union_keeps_the_targets_own_keys_and_values():
    control = MasaCtrl(union=True)
    call = make_call(control, layer=12)
    k, v = torch.cat([call.source.k, call.k], 1), torch.cat([call.source.v, call.v], 1)
    assert torch.allclose(control.attend(call), attend(call.q, k, v), rtol=1e-9)


@pytest.mark.parametrize(("step", "acts"), [(3, False), (4, True), (49, True)])
def test_it_begins_as_the_official_code_counts(step, acts):
    control = MasaCtrl()
    (act,) = control.acts_on(SD1)
    assert act.holds(make_call(control, step=step).run, None) == acts
    assert [la.index for la in act.layers] == list(range(10, 16))


@FAMILIES
def test_the_same_prompt_and_noise_give_the_source(kind, v):
    model = tiny.tiny_model(kind, v)
    inversion, image = generated(model, kind, steps=2 if kind == "SDXL" else 3)
    out = edits.run(model, inversion, EVERYWHERE, kind=kind, positive=5, sampler="ddim", packed=kind == "SD2")
    assert edits.difference(out, image) < 1e-4


@pytest.mark.parametrize("control", [MasaCtrl(start=1.0), MasaCtrl(first_layer=16)])
def test_beyond_the_last_step_or_layer_is_the_stock_sampler_bit_for_bit(model, inversion, control):
    assert torch.equal(edits.run(model, inversion, control), edits.run(model, inversion))


@pytest.mark.parametrize("words", [False, True])
def test_packed_and_separate_alike(model, words):
    inversion, _ = generated(model)
    control = MasaCtrl(start=0.0, words=WordMasks(CAT, DOG, "cat", "dog") if words else None)
    separate, packed = (edits.run(model, inversion, control, packed=p) for p in (False, True))
    assert edits.difference(packed, separate) < 1e-4
    assert not torch.equal(separate, edits.run(model, inversion))
    if words:
        assert not torch.equal(separate, edits.run(model, inversion, MasaCtrl(start=0.0)))


def test_masks_from_words(model, monkeypatch):
    """From the 16 x 16 layers ahead: mean of heads and layers, scaled to 0..1 over space, above the threshold."""
    inversion, _ = generated(model)
    seen = []

    def spy(call, masks, union):
        seen.append((call.layer.index, call.run.sigma, *masks))
        return call.own()

    looked = {}
    original = MasaCtrl.look

    def look(self, call):
        original(self, call)
        looked.setdefault(call.run.sigma, []).append(call.layer.index)

    monkeypatch.setattr(module, "_masked", spy)
    monkeypatch.setattr(MasaCtrl, "look", look)
    edits.run(model, inversion, MasaCtrl(start=0.0, words=WordMasks(CAT, DOG, "cat", "dog", threshold=0.5)))
    assert set(map(tuple, looked.values())) == {(4, 5, 7, 8, 9)}
    for _, _, source, target in seen:
        assert 0 < source.float().mean() < 1 and 0 < target.float().mean() < 1
    assert {layer for layer, *_ in seen} == set(range(10, 16))
    first, second = (next(s for s in seen if s[1] == sigma) for sigma in inversion.schedule[:2])
    assert not torch.equal(first[3], second[3]), "the masks are drawn anew in every step"


def test_words_that_are_not_there():
    with pytest.raises(ValueError, match="'horse' is not in the prompt"):
        WordMasks(CAT, DOG, "horse", "dog").columns()


def test_evaluations(model):
    """A source with the negative prompt, as of photographs (both empty): one row serves both halves.

    50 steps are 49 calls; MasaCtrl begins after 4 of them.
    """
    assert edits.planned(model, edits.recorded(model, prompt_seed=3), MasaCtrl(start=0.0)) == (49, 98)
    assert edits.planned(model, edits.recorded(model, prompt_seed=3), MasaCtrl()) == (45, 98)
    assert edits.planned(model, edits.recorded(model), MasaCtrl()) == (90, 98)
    assert edits.planned(model, edits.recorded(model), MasaCtrl(), cfg=1.0) == (45, 49)


def test_plans_are_kept(model, caplog):
    inversion = edits.recorded(model, steps=4)
    with caplog.at_level(logging.INFO):
        edits.run(model, inversion, MasaCtrl(start=0.0))
    assert "plans 12 UNet evaluations (6 source, 6 target): MasaCtrl" in caplog.text
    assert "Attention Edit: 12 UNet evaluations" in caplog.text


def test_a_negative_of_several_parts_is_refused(model, inversion):
    patched = engine.pin(engine.install(model, EVERYWHERE, inversion), inversion, tuple(inversion.schedule))
    two = tiny.prompt(3) + tiny.prompt(4)
    with pytest.raises(ValueError, match="2 parts"):
        tiny.sample(patched, tiny.prompt(2), two, edits.run_start(), torch.tensor([14.6, 0.0]))


def test_control_residuals_reach_the_edit_only(model):
    """A ControlNet or T2I-Adapter draws the new layout; both halves of the source stay without."""
    inversion, _ = generated(model)

    class Hint(comfy.controlnet.ControlBase):
        def __init__(self):
            super().__init__()
            self.rows = []

        def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
            self.rows.append(x_noisy.shape[0])
            return {"input": [], "middle": [], "output": []}

    hint = Hint()
    positive = tiny.prompt(2)
    positive[0][1] |= {"control": hint, "control_apply_to_uncond": True}
    for packed in (False, True):
        hint.rows.clear()
        patched = engine.install(model, EVERYWHERE, inversion, packed)
        tiny.sample(patched, positive, tiny.prompt(3), tiny.latent(4), torch.tensor(inversion.schedule))
        assert hint.rows == [2] * (len(inversion.sigmas) - 1)


def test_goes_with_prompt_to_prompts_words_but_not_with_what_replaces_self_attention(model, inversion):
    edits.run(model, inversion, P2P(CAT, DOG, self_window=(0, 0)), MasaCtrl())
    with pytest.raises(ValueError, match=r"CPAM and MasaCtrl do not go together.*6 layers \(10 to 15\) from 8%"):
        edits.run(model, inversion, CPAM(edits.masks()), MasaCtrl())
    with pytest.raises(ValueError, match=r"Prompt-to-Prompt and MasaCtrl.*\(10 to 12\) from 8% to 40%"):
        edits.run(model, inversion, P2P(CAT, DOG), MasaCtrl())
