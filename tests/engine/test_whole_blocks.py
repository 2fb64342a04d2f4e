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
from attention_edit.host.families import family_of
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
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
