"""What an edit has read of the source is kept for the next edit: the same result, without a row of the source."""

from __future__ import annotations

import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine import recorded, recording, shelves
from attention_edit.attention.engine.acts import Site
from attention_edit.attention.engine.call import Features
from attention_edit.attention.engine.install import install, pin, with_plan
from attention_edit.attention.engine.plan import plan_of
from attention_edit.attention.engine.recorded import Keeping, held_of
from attention_edit.attention.engine.sameness import Sameness
from attention_edit.attention.engine.shelves import DEVICE, DISK, OFF, RAM
from attention_edit.attention.methods.cpam import CPAM
from attention_edit.attention.methods.fpe import FPE
from attention_edit.host.marks import KEY, KEY_NEGATIVE
from every_method import BESIDE, METHODS, outputs
from kept import CALLS, LARGE, STEPS, own_temp_folder, sample, told
from tiny_joint import joint_inversion, joint_model, joint_prompt, joint_sample
from torch import Tensor

every = pytest.mark.parametrize("name", [*METHODS, *BESIDE])


@pytest.fixture
def inversion(model):
    return edits.invert(model, steps=STEPS)


@pytest.fixture(autouse=True)
def files(tmp_path):
    """Runs as the host runs nodes, with a temp folder of their own; gives where files of features lie in it."""
    with own_temp_folder(tmp_path) as folder, torch.inference_mode():
        yield folder


@every
def test_a_second_edit_is_the_same_and_costs_plain_sampling(name, model, inversion, caplog):
    """Every method: bit for bit as without, in the run that keeps and in the one that reads what is kept."""
    edited = (METHODS | BESIDE)[name](model, inversion)
    plain = sample(apart(edited), inversion, keep_source=OFF)
    caplog.set_level(logging.INFO)
    first = sample(edited, inversion)
    source, target, counted = told(caplog)
    assert torch.equal(first, plain) and counted >= source + target
    second = sample(edited, inversion)
    again, same, less = told(caplog)
    assert torch.equal(second, plain) and (again, same) == (0, target)
    assert counted - less == source
    assert (held_of(inversion) > 0) == (source > 0)


def apart(edited: Any) -> Any:
    """The model with its source in calls of its own, as it is where features are kept."""
    return with_plan(edited, replace(plan_of(edited), packed=False))


@pytest.mark.parametrize("where", [RAM, DEVICE, DISK])
def test_another_method_reads_what_one_has_kept(where, model, inversion, caplog):
    """CPAM keeps keys and values, FPE needs queries too: both are kept then, and neither runs the source again."""
    cpam, fpe = (METHODS[name](model, inversion) for name in ("cpam", "fpe"))
    plain = [sample(each, inversion, keep_source=OFF) for each in (cpam, fpe)]
    caplog.set_level(logging.INFO)
    found = [sample(each, inversion, keep_source=where) for each in (cpam, fpe)]
    assert told(caplog)[0] > 0
    again = [sample(each, inversion, keep_source=where) for each in (cpam, fpe)]
    assert told(caplog)[0] == 0
    assert all(torch.equal(a, b) for a, b in zip([*plain, *plain], [*found, *again], strict=True))


def test_another_prompt_mask_guidance_or_seed_keeps_the_record(model, inversion, caplog):
    sample(METHODS["cpam"](model, inversion), inversion)
    caplog.set_level(logging.INFO)
    moved = install(model, CPAM(edits.masks(edits.box(left=8))), inversion)
    sample(moved, inversion, cfg=2.0, positive=9, seed=1)
    assert told(caplog)[0] == 0
    assert "2 of 2 steps that read the source are known" in caplog.text


class Nothing:
    """A patch of another pack, which changes nothing."""

    def __call__(self, h: Tensor, skip: Tensor, options: Any) -> tuple[Tensor, Tensor]:
        return h, skip


def test_a_change_of_the_model_drops_the_record_and_says_so(model, inversion, caplog):
    cpam = CPAM(edits.masks())
    sample(install(model, cpam, inversion), inversion)
    caplog.set_level(logging.INFO)
    key = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    weight = model.model.state_dict()[key]
    stronger = model.clone()
    stronger.add_patches({key: ("diff", (torch.ones_like(weight),))})
    sample(install(stronger, cpam, inversion), inversion)
    assert told(caplog)[0] == CALLS and "since LoRAs or patches of the model's weights have changed" in caplog.text
    patched = model.clone()
    patched.set_model_output_block_patch(Nothing())
    sample(install(patched, cpam, inversion), inversion)
    assert told(caplog)[0] == CALLS
    caplog.clear()
    sample(install(patched, cpam, inversion), inversion)
    assert told(caplog)[0] == 0
    sample(install(model, cpam, inversion), inversion)
    assert told(caplog)[0] == CALLS and "since patches of other nodes on the model have changed" in caplog.text


def test_both_halves_of_guidance_go_with_their_negative_prompt(model, inversion, caplog):
    """FPE with both halves runs the source with the sampler's negative prompt too."""
    import nodes

    edited = install(model, FPE(both_halves=True, end=1.0), inversion)
    set_up, _, _, latent = outputs("Setup", model=edited, inversion=inversion)
    plain = outputs("Setup", model=edited, inversion=inversion, keep_source=OFF)[0]

    def drawn(on: Any, negative: int) -> Tensor:
        given = tiny.prompt(2), tiny.prompt(negative), latent
        return nodes.KSampler().sample(on, 0, STEPS, 4.0, "euler", "normal", *given)[0]["samples"]

    drawn(set_up, 3)
    caplog.set_level(logging.INFO)
    drawn(set_up, 3)
    assert told(caplog)[0] == 0
    other = drawn(set_up, 4)
    assert told(caplog)[0] == 2 * CALLS
    assert torch.equal(other, drawn(plain, 4))


def test_all_of_the_negative_prompt_counts(model, inversion):
    """Not its text alone: SDXL's sizes and the guidance that is built in are beside it."""
    import comfy.sampler_helpers

    names = set()
    for options in ({}, {"width": 512}, {"width": 768}, {"guidance": 2.0}):
        conds = comfy.sampler_helpers.convert_cond([[tiny.prompt(3)[0][0], options]])
        run = SimpleNamespace(halved=True, guider=SimpleNamespace(conds={KEY_NEGATIVE: conds}))
        names.add(recording._negative(run))
        assert recording._negative(run) in names
    assert len(names) == 4


def test_a_step_whose_source_a_cache_has_answered_is_not_kept():
    """A step without its features is no step: it would be missed for good."""
    needs = frozenset({(Site.SELF, 0, "k")})
    record = recorded.SourceRecord(Sameness({}), shelves.Shelf(RAM), Keeping(RAM, LARGE))
    record.keep((1.0, (KEY,)), needs, {}, tiny.CPU)
    assert not record.holds((1.0, (KEY,)), needs)
    record.keep((1.0, (KEY,)), needs, {(Site.SELF, 0): {KEY: Features(k=torch.ones(1, 2, 3))}}, tiny.CPU)
    assert record.holds((1.0, (KEY,)), needs)


def test_a_patch_of_a_whole_block_does_not_part_methods(model, inversion, caplog):
    """Methods hook other layers, in front of the same patch: it is the same model for both."""

    def patch(q: Tensor, k: Tensor, v: Tensor, _: Any) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    patched = model.clone()
    patched.set_model_attn1_replace(patch, "output", 3)
    for name in ("cpam", "masactrl"):
        sample(METHODS[name](patched, inversion), inversion)
    caplog.set_level(logging.INFO)
    sample(METHODS["cpam"](patched, inversion), inversion)
    assert told(caplog)[0] == 0


@pytest.mark.parametrize("kind", ["SD3", "Flux", "ZImage"])
def test_transformers_read_what_is_kept(kind, caplog):
    """The text beside the image is kept with it, and moved to where another prompt's image stands."""
    model = joint_model(kind)
    inversion = joint_inversion(model, kind)
    edited = install(model, CPAM(edits.masks()), inversion)
    caplog.set_level(logging.INFO)

    def drawn(keeping: Keeping | None, tokens: int) -> Tensor:
        pinned = pin(edited, inversion, tuple(inversion.schedule), keeping=keeping)
        zeros, stub = torch.zeros_like(inversion.latents[0]), torch.tensor([1.0, 0.0])
        prompts = joint_prompt(2, kind, tokens), joint_prompt(3, kind)
        return joint_sample(pinned, *prompts, zeros, zeros, stub, 4.0)

    keeping = Keeping(RAM, LARGE)
    drawn(keeping, 12)
    found = drawn(keeping, 17)
    assert told(caplog)[0] == 0
    assert torch.equal(found, drawn(None, 17))
