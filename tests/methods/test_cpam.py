"""CPAM: the invariants of Eqs 1-4, its gates and guards."""

from __future__ import annotations

import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine.acts import NULL_TEXT
from attention_edit.attention.masks.cells import resize
from attention_edit.attention.methods import cpam as module
from attention_edit.attention.methods.cpam import CPAM
from calls import HEADS, SIDE, WIDTH, attend, make_call, masked_attention, random


def at(mask):
    return resize(mask, (SIDE, SIDE)).flatten(1)[0]


@pytest.mark.parametrize("retain", [False, True])
def test_equations_1_to_3(retain):
    source, target = edits.box(), edits.box(24, 24, 64, 64)
    control = CPAM(edits.masks(source, target, retain), normal_share=0.0)
    call = make_call(control)
    background = masked_attention(call.q, call.source.k, call.source.v, ~at(source))
    if retain:
        foreground = masked_attention(call.q, call.source.k, call.source.v, at(target))
    else:
        foreground = attend(call.q, call.k, call.v)
    inside = at(target)[None, :, None]
    assert torch.allclose(control.preserve(call), torch.where(inside, foreground, background), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("step", "layer", "retained"), [(2, 9, False), (3, 9, True), (3, 6, False), (3, 7, True)])
def test_gates_count_as_the_official_code(step, layer, retained):
    """Retained from step 3 and layer 7, both counted from 0 (paper: t > 3, l > 8)."""
    results = []
    for retain in (True, False):
        control = CPAM(edits.masks(retain=retain), normal_share=0.0)
        results.append(control.preserve(make_call(control, layer, step)))
    assert torch.equal(*results) != retained


@pytest.mark.parametrize("key_mask", module.KEY_MASKS)
def test_key_masks_of_a_retained_object(key_mask):
    source, target = edits.box(16, 16, 40, 40), edits.box(48, 48, 64, 64)
    control = CPAM(edits.masks(source, target, True), key_mask=key_mask, normal_share=0.0)
    call = make_call(control)
    keys = {"target": at(target), "source": at(source), "union": at(target) | at(source)}[key_mask]
    expected = masked_attention(call.q, call.source.k, call.source.v, keys)
    inside = at(target)
    assert torch.allclose(control.preserve(call)[:, inside], expected[:, inside], rtol=1e-9)


def test_empty_masks_give_the_source_reading_on_all_keys():
    """M_s = M_t = 0: Att(Q, K_i, V_i) everywhere."""
    control = CPAM(edits.masks(edits.NONE, edits.NONE), normal_share=0.0)
    call = make_call(control)
    expected = attend(call.q, call.source.k, call.source.v)
    assert torch.allclose(control.preserve(call), expected, rtol=1e-9)


def test_full_target_is_vanilla_bit_for_bit():
    control = CPAM(edits.masks(edits.ALL, edits.ALL), normal_share=0.0)
    call = make_call(control)
    assert torch.equal(control.preserve(call), call.own())


def test_all_normal_is_vanilla_bit_for_bit():
    control = CPAM(edits.masks(), normal_share=1.0)
    call = make_call(control)
    assert torch.equal(control.preserve(call), call.own())


def test_removal_ignores_what_the_source_mask_covers():
    """M_t empty: changing the source's values inside M_s changes nothing in the layer."""
    source = edits.box()
    control = CPAM(edits.masks(source, edits.NONE), normal_share=0.0)
    call = make_call(control)
    before = control.preserve(call)
    call.source.v[:, at(source)] += 100
    call.source.k[:, at(source)] -= 100
    assert torch.equal(control.preserve(call), before)
    call.source.v[:, ~at(source)] += 1
    assert not torch.equal(control.preserve(call), before)


def test_background_queries_do_not_read_the_target():
    control = CPAM(edits.masks(), normal_share=0.0)
    call = make_call(control)
    before = control.preserve(call)
    call.k.add_(1.0)
    call.v.add_(1.0)
    call.own.value = None
    after = control.preserve(call)
    outside = ~at(edits.box())
    assert torch.equal(after[:, outside], before[:, outside])
    assert not torch.equal(after[:, ~outside], before[:, ~outside])


@pytest.mark.parametrize("rule", ["nearest", "majority", "any"])
@pytest.mark.parametrize("retain", [False, True])
@pytest.mark.parametrize(
    "masks",
    [
        (edits.ALL, edits.NONE),
        (edits.ALL, edits.ALL),
        (edits.NONE, edits.ALL),
        (edits.NONE, edits.NONE),
        (edits.box(3, 3, 2, 2), edits.box(3, 3, 2, 2)),
        (~edits.box(3, 3, 2, 2), ~edits.box(3, 3, 2, 2)),
        (~edits.box(3, 3, 2, 2), edits.NONE),
    ],
)
@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_never_nan(masks, retain, rule, side):
    control = CPAM(edits.masks(*masks, retain=retain), normal_share=0.0, resize_rule=rule)
    assert torch.isfinite(control.preserve(make_call(control, side=side))).all()


def test_masks_per_image():
    """Each image of a batch has masks of its own."""
    two = torch.cat([edits.box(), edits.box(64, 64, 32, 48)])
    control = CPAM(edits.masks(two, two), normal_share=0.0)
    call = make_call(control, batch=2)
    out = control.preserve(call)
    for item in range(2):
        single = CPAM(edits.masks(two[item : item + 1], two[item : item + 1]), normal_share=0.0)
        alone = single.preserve(make_call(single, batch=2))
        assert torch.allclose(out[item::2], alone[item::2], rtol=1e-9)


def test_the_ten_percent_are_seeded_and_ten_percent():
    control = CPAM(edits.masks(), normal_share=0.1)
    drawn = [torch.tensor(make_call(control, seed=seed).state.normal) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert float(torch.stack(drawn[1:]).float().mean()) == pytest.approx(0.1, abs=0.02)


def test_equation_4():
    """Conditional rows: the prompt inside M_t, the null text outside; unconditional rows stay."""
    control = CPAM(edits.masks())
    null = tuple(random(2, 77, HEADS * WIDTH, seed=20 + i) for i in range(2))
    call = make_call(control, extra={NULL_TEXT: null}, tokens=77)
    out = control.extract(call)
    own, other = attend(call.q, call.k, call.v), attend(call.q, *null)
    inside = at(edits.box())
    assert torch.equal(out[0], own[0])
    assert torch.allclose(out[1, inside], own[1, inside], rtol=1e-9)
    assert torch.allclose(out[1, ~inside], other[1, ~inside], rtol=1e-9)


# The same on the host's own model.


def test_empty_masks_make_prompt_and_guidance_inert(model, inversion):
    control = CPAM(edits.masks(edits.NONE, edits.NONE), normal_share=0.0)
    first = edits.run(model, inversion, control, positive=2, cfg=7.5)
    assert edits.difference(edits.run(model, inversion, control, positive=9, cfg=3.0), first) < 1e-4


def test_removal_does_not_read_the_prompt(model, inversion):
    control = CPAM(edits.masks(edits.box(), edits.NONE), normal_share=0.0)
    first = edits.run(model, inversion, control, positive=2)
    assert edits.difference(edits.run(model, inversion, control, positive=9), first) < 1e-4


def test_full_target_is_plain_generation_bit_for_bit(model, inversion):
    control = CPAM(edits.masks(edits.ALL, edits.ALL), normal_share=0.0)
    assert torch.equal(edits.run(model, inversion, control), edits.run(model, inversion))


def test_first_step_with_the_sources_prompt_is_the_sources(model, inversion):
    """At the first step, before anything differs, empty masks and the source's null text give the source's noise."""
    control = CPAM(edits.masks(edits.NONE, edits.NONE), normal_share=0.0)
    seen = []

    def keep(args):
        seen.append((args["uncond_denoised"], args["cond_denoised"]))
        return args["denoised"]

    patched = model.clone()
    patched.set_model_sampler_post_cfg_function(keep)
    patched = edits.install(patched, control, inversion)
    patched = edits.pin(patched, inversion, tuple(inversion.schedule))
    tiny.sample(patched, tiny.prompt(2), tiny.prompt(5), edits.run_start(), torch.tensor([14.6, 0.0]))
    uncond, cond = seen[0]
    plain = []
    probe = model.clone()
    probe.set_model_sampler_post_cfg_function(lambda a: plain.append(a["cond_denoised"]) or a["denoised"])
    probe = edits.pin(probe, inversion, tuple(inversion.schedule))
    tiny.sample(probe, tiny.prompt(5), tiny.prompt(5), edits.run_start(), torch.tensor([14.6, 0.0]))
    assert edits.difference(cond, uncond) < 1e-5
    assert edits.difference(cond, plain[0]) < 1e-5


def test_localized_extraction_needs_a_negative_prompt(model, inversion):
    import comfy.samplers

    patched = edits.install(model, CPAM(edits.masks()), inversion)
    guider = comfy.samplers.CFGGuider(patched)
    guider.inner_set_conds({"positive": tiny.prompt(2)})
    with pytest.raises(ValueError, match="negative"):
        guider.sample(
            edits.run_start(),
            edits.run_start() + 1,
            comfy.samplers.sampler_object("euler"),
            torch.tensor(inversion.schedule),
            disable_pbar=True,
        )


@pytest.mark.parametrize(("kind", "v"), [("SD2", True), ("SDXL", False)])
def test_other_families(kind, v):
    model = tiny.tiny_model(kind, v)
    inversion = edits.invert(model, kind, steps=2)
    full = CPAM(edits.masks(edits.ALL, edits.ALL), normal_share=0.0)
    assert torch.equal(edits.run(model, inversion, full, kind=kind), edits.run(model, inversion, kind=kind))
    edited = edits.run(model, inversion, CPAM(edits.masks(retain=True), normal_share=0.0), kind=kind)
    assert torch.isfinite(edited).all()
    assert not torch.equal(edited, edits.run(model, inversion, kind=kind))
