"""Patches of other packs that replace the attention of whole blocks, beside ours."""

from __future__ import annotations

import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine import install as engine
from attention_edit.attention.maps.recorder import recorder
from attention_edit.attention.methods.cpam import CPAM
from attention_edit.attention.methods.fpe import FPE
from attention_edit.attention.methods.masactrl import MasaCtrl
from attention_edit.attention.methods.p2p import P2P
from attention_edit.host.families import family_of
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from every_method import GUIDED, METHODS, put
from other_packs import OTHERS
from prompts import prompt

CONTROLS = {"cpam": lambda: CPAM(edits.masks(), normal_share=0.0), "fpe": FPE, "masactrl": lambda: MasaCtrl(0.0, 0)}


def guided(model):
    return PerturbedAttentionGuidance.execute(model, 30.0).args[0]


def sampled(model, inversion):
    pinned = engine.pin(model, inversion, tuple(inversion.schedule))
    return tiny.sample(pinned, tiny.prompt(2), tiny.prompt(3), edits.run_start(), torch.tensor([14.6, 0.0]))


@pytest.mark.parametrize("control", CONTROLS.values(), ids=CONTROLS)
def test_perturbed_attention_guidance_acts_in_either_order(model, inversion, control):
    """It patches the middle block for one call in each step; as much as without an edit, which is 1e-5 when dead."""
    stock = sampled(model, inversion)
    alone = edits.difference(sampled(guided(model), inversion), stock)
    edited = engine.install(model, control(), inversion)
    bare = sampled(edited, inversion)
    before = sampled(engine.install(guided(model), control(), inversion), inversion)
    after = sampled(guided(edited), inversion)
    assert torch.equal(before, after)
    assert edits.difference(after, bare) > 0.1 * alone > 1e-3


def test_record_maps_changes_nothing_beside_it(model, inversion):
    watch = recorder(prompt("a cat"), family_of(model), (4,), (8,), 0.0, 1.0)
    out = sampled(guided(engine.install(model, watch)), inversion)
    assert torch.equal(out, sampled(guided(model), inversion))


@pytest.mark.parametrize("name", ["attn1", "attn2"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_patch_of_a_whole_block_is_called(model, inversion, name, when):
    """With the keys of its own text, without those that CPAM appends."""
    calls = []

    def whole_block(q, k, v, options):
        calls.append(k.shape[1])
        return torch.zeros_like(q)

    edited = (model if when == "before" else engine.install(model, CONTROLS["cpam"](), inversion)).clone()
    setter = edited.set_model_attn1_replace if name == "attn1" else edited.set_model_attn2_replace
    setter(whole_block, "output", 3)
    if when == "before":
        edited = engine.install(edited, CONTROLS["cpam"](), inversion)
    sampled(edited, inversion)
    assert len(calls) >= 3 and set(calls) <= {16, 77}  # 4 x 4 image tokens, or the text's


@pytest.mark.parametrize(("control", "named"), [("p2p", True), ("masactrl", False)])
def test_a_patch_of_cross_attention_that_an_edit_computes_anew_is_named(model, inversion, caplog, control, named):
    """Only where it stands before the edit, whose maps are of the text alone."""
    controls = {**CONTROLS, "p2p": lambda: P2P(prompt("a red cat"), prompt("a blue cat"))}
    patched = model.clone()

    def theirs(q, k, v, options):
        return torch.zeros_like(q)

    patched.set_model_attn2_replace(theirs, "output", 3)
    sampled(engine.install(patched, controls[control](), inversion), inversion)
    cure = "Expect next to nothing of the patch theirs, or put its node after the edit nodes"
    assert (cure in caplog.text) == named


@pytest.mark.parametrize("method", ["p2p", "regions"])
@pytest.mark.parametrize("name", ["IPAdapter", "IPAdapter, by layers"])
def test_what_adds_to_attention_that_an_edit_computes_anew_is_added_in_either_order(model, inversion, method, name):
    """IPAdapter's patch before the edit's node is added behind the edit, as it is when its node comes after."""
    other, put = next(other for other in OTHERS if other.name == name), METHODS[method]
    before = sampled(put(other.on(model), inversion), inversion)
    after = sampled(other.on(put(model, inversion)), inversion)
    assert edits.difference(before, after) < 1e-5
    assert edits.difference(after, sampled(put(model, inversion), inversion)) > 1e-3


@pytest.mark.parametrize("order", ["before", "after"])
def test_rows_that_another_pack_adds_to_attention_are_refused(model, inversion, order):
    couple = next(other for other in OTHERS if other.name == "Attention couple")
    edited = engine.install(couple.on(model) if order == "before" else model, CONTROLS["cpam"](), inversion)
    with pytest.raises(ValueError, match=r"Remove the node that gives attention further rows.*3 rows where .* make 2"):
        sampled(couple.on(edited) if order == "after" else edited, inversion)


def test_maps_that_another_patch_takes_the_place_of_are_refused(model, inversion):
    edited = put("MAG", **GUIDED)(model, inversion)

    def theirs(q, k, v, options):
        return torch.zeros_like(q)

    edited.set_model_attn2_replace(theirs, "output", 5)
    with pytest.raises(ValueError, match=r"Put the node of the patch theirs before the edit nodes: .* 1 of \d layers"):
        sampled(edited, inversion)
