"""Region prompts: each query reads its own region's prompt, and nothing else changes."""

from __future__ import annotations

from types import SimpleNamespace

import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine import install as engine
from attention_edit.attention.engine.acts import NULL_TEXT
from attention_edit.attention.engine.call import AttentionCall
from attention_edit.attention.engine.plan import Plan
from attention_edit.attention.engine.run import Run
from attention_edit.attention.engine.site import Own
from attention_edit.attention.masks.cells import resize
from attention_edit.attention.methods.cpam import CPAM
from attention_edit.attention.methods.regions import ELSEWHERE, RegionPrompts, make_region
from attention_edit.host.families import SD1
from calls import HEADS, SIDE, WIDTH, attend, random

MAIN = ELSEWHERE[1]
LEFT, RIGHT = edits.box(0, 0, 128, 64), edits.box(0, 64, 128, 64)
SCHEDULE = torch.tensor([14.6, 5.0, 1.0, 0.0])


def region(mask, seed, kind="SD1", **options):
    return make_region(mask.float(), tiny.prompt(seed, kind, **options))


def make_call(control, batch=1, chunks=2):
    """One cross-attention with random features in float64, and its contexts' keys and values."""
    run = Run(SD1, 0, [2.0, 1.0, 0.0], (SIDE, SIDE), SimpleNamespace(conds={}), plan=Plan((control,)))
    run.states[control] = control.begin(run)
    rows = chunks * batch
    q, k, v = (random(rows, n, HEADS * WIDTH, seed=i) for i, n in enumerate((SIDE * SIDE, 77, 77)))
    names = [NULL_TEXT, *(f"prompt of region {i + 1}" for i in range(len(control.regions)))]
    lengths = [77, *(77 * (i + 1) for i in range(len(control.regions)))]
    extra = {
        name: tuple(random(rows, n, HEADS * WIDTH, seed=30 + 2 * i + j) for j in range(2))
        for i, (name, n) in enumerate(zip(names, lengths, strict=True))
    }
    own = Own(lambda: attend(q, k, v), plain=True)
    conditional = (False, True)[:chunks]
    return AttentionCall(
        run,
        SD1.layers[9],
        (SIDE, SIDE),
        q,
        k,
        v,
        conditional,
        batch,
        own,
        attend,
        state=run.states[control],
        extra=extra,
    )


def cells(mask):
    return resize(mask, (SIDE, SIDE)).flatten(1)[0]


@pytest.mark.parametrize("elsewhere", ELSEWHERE)
def test_each_region_attends_to_its_own_prompt(elsewhere):
    """Against the papers' way: attention of all queries to each prompt, put together by position."""
    top, corner = edits.box(0, 0, 64, 128), edits.box(32, 64, 64, 64)
    control = RegionPrompts((region(top, 1), region(corner, 2)), elsewhere)
    call = make_call(control)
    out = control.show(call)
    expected = attend(call.q, *((call.k, call.v) if elsewhere == MAIN else call.extra[NULL_TEXT]))
    for number, mask in enumerate((top, corner), 1):
        theirs = attend(call.q, *call.extra[f"prompt of region {number}"])
        expected = torch.where(cells(mask)[None, :, None], theirs, expected)
    assert torch.allclose(out[1], expected[1], rtol=1e-9, atol=1e-12)
    assert torch.equal(out[0], attend(call.q, call.k, call.v)[0])


def test_a_query_depends_on_its_own_regions_prompt_only():
    control = RegionPrompts((region(LEFT, 1), region(RIGHT, 2)))
    call = make_call(control)
    before = control.show(call)
    others = {name: pair for name, pair in call.extra.items() if name != "prompt of region 2"}
    for k, v in others.values():
        k.add_(3.0)
        v.sub_(5.0)
    call.k.add_(1.0)
    call.v.add_(1.0)
    call.own.value = None
    after = control.show(call)
    right = cells(RIGHT)
    assert torch.equal(after[1, right], before[1, right])
    assert not torch.isclose(after[1, ~right], before[1, ~right]).any()


def test_regions_per_image_of_a_batch():
    """Each image of a batch has masks of its own."""
    two = torch.cat([LEFT, edits.box(32, 32, 64, 64)])
    control = RegionPrompts((region(two, 1),))
    call = make_call(control, batch=2)
    out = control.show(call)
    for item in range(2):
        single = RegionPrompts((region(two[item : item + 1], 1),))
        alone = single.show(make_call(single, batch=2))
        assert torch.allclose(out[item::2], alone[item::2], rtol=1e-9)


# On the host's own model.


def generate(model, *regions, elsewhere=ELSEWHERE[0], main=2, kind="SD1", batch=1, cfg=7.5, negative=3):
    if regions:
        model = engine.install(model, RegionPrompts(regions, elsewhere))
    return tiny.sample(
        model, tiny.prompt(main, kind), tiny.prompt(negative, kind), tiny.latent(4, batch), SCHEDULE, cfg
    )


@pytest.mark.parametrize("cfg", [1.0, 7.5])
def test_one_region_of_the_whole_image_is_a_plain_generation(model, cfg):
    """Of that region's prompt, whatever the main prompt is."""
    plain = generate(model, main=6, cfg=cfg)
    assert edits.difference(generate(model, region(edits.ALL, 6), main=9, cfg=cfg), plain) < 1e-4
    assert edits.difference(generate(model, main=9, cfg=cfg), plain) > 1e-2


def test_two_regions_with_the_same_prompt_are_a_plain_generation(model):
    both = generate(model, region(LEFT, 6), region(RIGHT, 6), main=9)
    assert edits.difference(both, generate(model, main=6)) < 1e-4


def test_two_prompts_are_neither(model):
    mixed = generate(model, region(LEFT, 6), region(RIGHT, 7))
    assert all(edits.difference(mixed, generate(model, main=main)) > 1e-2 for main in (6, 7))


def test_the_later_of_overlapping_regions_counts(model):
    covered = generate(model, region(LEFT, 5), region(edits.ALL, 6))
    assert edits.difference(covered, generate(model, main=6)) < 1e-4


def test_elsewhere(model):
    """Uncovered pixels read the null text or the main prompt."""
    filled = generate(model, region(LEFT, 6), region(RIGHT, 2), main=9)
    assert edits.difference(generate(model, region(LEFT, 6), elsewhere=MAIN, main=2), filled) < 1e-4
    filled = generate(model, region(LEFT, 6), region(RIGHT, 3), main=9)
    assert edits.difference(generate(model, region(LEFT, 6), main=2), filled) < 1e-4


@pytest.mark.parametrize("tokens", [77, 154, 231])
def test_prompts_of_other_lengths(model, tokens):
    """A long prompt in a region is what it is as the main prompt of the host."""
    long = tiny.prompt(6, tokens=tokens)
    plain = tiny.sample(model, long, tiny.prompt(3), tiny.latent(4), SCHEDULE)
    assert edits.difference(generate(model, make_region(edits.ALL.float(), long)), plain) < 1e-4


def test_batches(model):
    """One prompt for all images or one per image; a prompt of another batch is an error."""
    per_image = region(LEFT, 6, batch=2)
    out = generate(model, per_image, batch=2)
    for i in range(2):
        alone = engine.install(model, RegionPrompts((make_region(LEFT, [[per_image.states[i : i + 1], {}]]),)))
        start = tiny.latent(4, 2)[i : i + 1]
        single = tiny.sample(alone, tiny.prompt(2), tiny.prompt(3), start, SCHEDULE)
        assert edits.difference(out[i : i + 1], single) < 1e-4
    with pytest.raises(ValueError, match=r"batch of 3.*2 images"):
        generate(model, region(LEFT, 6, batch=3), batch=2)


@pytest.mark.parametrize(("kind", "v"), [("SD2", True), ("SDXL", False)])
def test_other_families(kind, v):
    model = tiny.tiny_model(kind, v)
    main = tiny.prompt(6, kind)
    plain = tiny.sample(model, main, tiny.prompt(3, kind), tiny.latent(4), SCHEDULE)
    patched = engine.install(model, RegionPrompts((make_region(LEFT, main), make_region(RIGHT, main))))
    # SDXL's pooled vector is the main prompt's: it is one for the whole picture.
    other = [[torch.zeros_like(main[0][0]), main[0][1]]]
    assert edits.difference(tiny.sample(patched, other, tiny.prompt(3, kind), tiny.latent(4), SCHEDULE), plain) < 1e-4


def test_no_evaluation_more(model, caplog):
    with caplog.at_level("INFO"):
        generate(model, region(LEFT, 6), region(RIGHT, 7))
    assert "plans 6 UNet evaluations (0 source, 6 target): Region Prompts" in caplog.text
    assert "Attention Edit: 6 UNet evaluations" in caplog.text


# On a photograph, with CPAM behind.


def edit(model, inversion, *regions, main=2, elsewhere=ELSEWHERE[0], **options):
    control = CPAM(edits.masks(), normal_share=0.0, **options)
    first = [RegionPrompts(regions, elsewhere)] if regions else []
    return edits.run(model, inversion, *first, control, positive=main)


def test_a_region_inside_cpams_mask_edits_with_its_own_prompt(model, inversion):
    """CPAM keeps the prompts inside its target mask: a region that covers it is an edit with that prompt."""
    alone = edit(model, inversion, main=6)
    assert edits.difference(edit(model, inversion, region(edits.ALL, 6)), alone) < 1e-4
    assert edits.difference(edit(model, inversion, region(edits.box(), 6)), alone) < 1e-4
    upper, lower = edits.box(32, 40, 24, 40), edits.box(56, 40, 24, 40)
    assert edits.difference(edit(model, inversion, region(upper, 6), region(lower, 6)), alone) < 1e-4
    mixed = edit(model, inversion, region(upper, 6), region(lower, 7))
    assert edits.difference(mixed, alone) > 1e-3


@pytest.mark.parametrize("localized", [False, True])
def test_the_order_of_the_nodes_does_not_matter(localized, model, inversion):
    """CPAM's Eq 4 acts on what the regions give; without it they reach beyond its target mask."""
    controls = [CPAM(edits.masks(), normal_share=0.0, localized=localized), RegionPrompts((region(LEFT, 6),))]
    results = [edits.run(model, inversion, *order) for order in (controls, controls[::-1])]
    assert torch.equal(*results)
    assert edits.difference(results[0], edits.run(model, inversion, controls[0])) > 1e-3


def test_a_region_outside_cpams_target_is_refused(model, inversion):
    with pytest.raises(ValueError, match="Region 2 lies outside CPAM's target mask"):
        edit(model, inversion, region(edits.box(), 6), region(edits.box(96, 96, 16, 16), 7))
    removal = CPAM(edits.masks(edits.box(), edits.NONE))
    with pytest.raises(ValueError, match="a removal has no target"):
        edits.run(model, inversion, RegionPrompts((region(edits.box(), 6),)), removal)


# Bad inputs.


def test_two_controls_are_refused(model):
    patched = engine.install(model, RegionPrompts((region(LEFT, 6),)))
    with pytest.raises(ValueError, match="Region Prompts and Region Prompts do not go together"):
        generate(patched, region(RIGHT, 7))


def test_a_region_of_another_picture_is_refused(model):
    with pytest.raises(ValueError, match=r"region 1 is 64x32.*128x128"):
        generate(model, region(torch.ones(1, 32, 64), 6))


def test_a_region_takes_one_plain_prompt():
    area = tiny.prompt(6)
    area[0][1]["area"] = (8, 8, 0, 0)
    with pytest.raises(ValueError, match=r"prompt of a region.*has an area"):
        make_region(LEFT, area)
    with pytest.raises(ValueError, match="has 2 parts"):
        make_region(LEFT, tiny.prompt(6) + tiny.prompt(7))
    with pytest.raises(ValueError, match="selects nothing"):
        make_region(edits.NONE, tiny.prompt(6))


def test_a_prompt_of_another_model_is_refused(model):
    foreign = make_region(LEFT, [[torch.zeros(1, 77, tiny.CONTEXT + 8), {}]])
    with pytest.raises(ValueError, match=r"24 numbers per token.*reads 16"):
        generate(model, foreign)


def test_the_null_text_needs_a_negative_prompt(model):
    import comfy.samplers

    def run(elsewhere):
        guider = comfy.samplers.CFGGuider(engine.install(model, RegionPrompts((region(LEFT, 6),), elsewhere)))
        guider.inner_set_conds({"positive": tiny.prompt(2)})
        sampler = comfy.samplers.sampler_object("euler")
        guider.set_cfg(1.0)
        with torch.inference_mode():
            return guider.sample(torch.zeros(1, 4, 16, 16), tiny.latent(4), sampler, SCHEDULE, disable_pbar=True)

    with pytest.raises(ValueError, match=r"negative conditioning.*main prompt"):
        run(ELSEWHERE[0])
    assert torch.isfinite(run(MAIN)).all()
