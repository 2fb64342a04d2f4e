"""Mask refinement: the target mask is what the prompt's words attend to, from some step on."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace

import edits
import pytest
import tiny
import torch
import torch.nn.functional as F
from attention_edit.attention.engine import install as engine
from attention_edit.attention.engine.acts import Act, How, Site
from attention_edit.attention.engine.control import Control
from attention_edit.attention.maps.heat import min_max
from attention_edit.attention.masks import target as refine
from attention_edit.attention.masks.cells import grow, resize
from attention_edit.attention.masks.edit_masks import TASKS, edit_masks
from attention_edit.attention.masks.refinement import RefinedMasks, RefinedRun, Refinement, make_refinement
from attention_edit.attention.masks.target import Target, usable
from attention_edit.attention.methods.cpam import CPAM
from attention_edit.attention.methods.regions import RegionPrompts, make_region
from attention_edit.nodes.refine import RefinedMasksNode

WORDS = (2, 3, 5)
HALF = 0.5
"""Of four steps: the given mask holds in steps 0 and 1, the refined one in step 2, the last that is run."""


def refinement(start=HALF, threshold=0.45, columns=WORDS, **options):
    return Refinement(columns, 77, start, threshold, **options)


def refined(how, source=None, target=None):
    return edits.masks(source, target).refined(how)


def edit(model, inversion, how, batch=1, **options):
    control = CPAM(refined(how), normal_share=0.0, **options)
    return edits.run(model, inversion, control, batch=batch)


@dataclass(frozen=True, eq=False)
class Spy(Control):
    """Keeps queries and keys of the conditional rows of every cross-attention by step."""

    seen: dict = field(default_factory=dict)
    own: dict = field(default_factory=dict)

    def acts_on(self, family):
        return tuple(
            Act(site, family.layers, do=partial(self.keep, where), how=How.STANDS_ON)
            for site, where in ((Site.SELF, self.own), (Site.CROSS, self.seen))
        )

    def keep(self, where, call):
        rows = call.rows(call.conditional.index(True))
        where.setdefault(call.run.step, []).append((call.q[rows], call.k[rows], call.heads, call.shape))
        return call.own()


def probabilities(q, k, heads):
    """Attention maps (heads, N, L) of the first image."""
    q, k = (x[0].unflatten(-1, (heads, -1)).transpose(0, 1).double() for x in (q, k))
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)


def expected_heat(layers, size):
    """This pack's way: maps of all tokens, mean of heads and words, over the maximum, nearest, summed."""
    total = torch.zeros(size)
    for q, k, heads, shape in layers:
        heat = probabilities(q, k, heads)[..., list(WORDS)].mean((0, 2)).reshape(1, 1, *shape)
        total = total + F.interpolate(heat, size=size, mode="nearest")[0, 0] / heat.max()
    return total


def expected_mask(layers, size, threshold=0.45):
    """What the heat of the layers selects."""
    return cut(expected_heat(layers, size), threshold)


def cut(heat, threshold=0.45):
    return (heat - heat.min()) / (heat.max() - heat.min()) > threshold


def test_masks_are_the_words_maps_over_layers_and_steps(model, inversion):
    """From the end of the second step on, each mask from the maps since then."""
    how, spy = refinement(), Spy()
    edits.run(model, inversion, spy, CPAM(refined(how), normal_share=0.0))
    found = how.masks.by_step
    assert sorted(found) == [1, 2] and sorted(spy.seen) == [0, 1, 2]
    assert len(spy.seen[1]) == 16
    size = (tiny.SIZE, tiny.SIZE)
    assert torch.equal(found[1][0], expected_mask(spy.seen[1], size))
    assert torch.equal(found[2][0], expected_mask(spy.seen[1] + spy.seen[2], size))
    assert not torch.equal(found[1], found[2])


def test_only_layers_of_one_size_are_read(model, inversion):
    how, spy = refinement(scales=(1,)), Spy()
    edits.run(model, inversion, spy, CPAM(refined(how), normal_share=0.0))
    size = (tiny.SIZE, tiny.SIZE)
    layers = [layer for layer in spy.seen[1] if layer[3] == size]
    assert 0 < len(layers) < len(spy.seen[1])
    assert torch.equal(how.masks.by_step[1][0], expected_mask(layers, size))


def test_self_attention_sharpens(model, inversion):
    """Each cell of the largest maps has the mean of the cells that it looks at, over layers and heads."""
    how, spy = refinement(own_scale=1), Spy()
    edits.run(model, inversion, spy, CPAM(refined(how), normal_share=0.0))
    size = (tiny.SIZE, tiny.SIZE)
    for step, steps in ((1, [1]), (2, [1, 2])):
        own = [probabilities(*layer[:3]).mean(0) for s in steps for layer in spy.own[s] if layer[3] == size]
        heat = expected_heat([layer for s in steps for layer in spy.seen[s]], size).double()
        sharp = (torch.stack(own).mean(0) @ heat.flatten()).reshape(size)
        found = how.masks.by_step[step][0]
        assert (found == cut(sharp)).float().mean() > 0.98  # float32 beside float64 at the threshold
        assert not torch.equal(found, cut(heat))


@pytest.mark.parametrize("reach", [0.0, 0.4])
def test_reach_keeps_it_near_the_given_mask(model, inversion, reach):
    """What lies further out than that is not selected; the rest is as without it."""
    bounded, free = refinement(reach=reach, threshold=0.2), refinement(threshold=0.2)
    for how in (bounded, free):
        edit(model, inversion, how)
    allowed = resize(grow(edits.masks().target, reach), (tiny.SIZE, tiny.SIZE), "any")
    assert (free.masks.by_step[1] & ~allowed).any()
    assert torch.equal(bounded.masks.by_step[1], free.masks.by_step[1] & allowed)


@pytest.mark.parametrize("options", [{"scales": (3,)}, {"own_scale": 3}])
def test_sizes_that_the_model_lacks_are_refused(model, inversion, options):
    with pytest.raises(ValueError, match="has no attention layers of the size"):
        edit(model, inversion, refinement(**options))


def test_the_given_mask_holds_until_then(model, inversion, monkeypatch):
    """A refined mask that is the given one changes nothing; one that is everything makes the rest plain sampling."""
    plain = edits.run(model, inversion, CPAM(edits.masks(), normal_share=0.0))
    monkeypatch.setattr(refine, "usable", lambda chosen, given, reachable: resize(given, tuple(chosen.shape[1:])))
    assert torch.equal(edit(model, inversion, refinement()), plain)
    monkeypatch.setattr(refine, "usable", lambda chosen, *_: torch.ones(chosen.shape, dtype=torch.bool))
    stopped = edits.run(model, inversion, CPAM(edits.masks(), normal_share=0.0, end=HALF))
    assert torch.equal(edit(model, inversion, refinement()), stopped)
    assert not torch.equal(stopped, plain)


@pytest.mark.parametrize("localized", [True, False])
def test_it_changes_the_edit(model, inversion, localized):
    how = refinement()
    out = edit(model, inversion, how, localized=localized)
    fixed = edits.run(model, inversion, CPAM(edits.masks(), normal_share=0.0, localized=localized))
    assert edits.difference(out, fixed) > 1e-4
    assert how.masks.by_step


def test_each_image_of_a_batch_has_its_own(model):
    both = edits.invert(model, batch=2)
    how = refinement()
    out = edit(model, both, how, batch=2)
    together = how.masks.by_step
    for i in range(2):
        single = type(both)(**{**vars(both), "latents": both.latents[:, i : i + 1]})
        assert edits.difference(out[i : i + 1], edit(model, single, how)) < 1e-4
        assert all(torch.equal(mask[0], together[step][i]) for step, mask in how.masks.by_step.items())


def test_packed_equals_separate(model, inversion):
    how = refinement()
    results = [
        edits.run(model, inversion, CPAM(refined(how), normal_share=0.0), packed=packed) for packed in (False, True)
    ]
    assert edits.difference(results[1], results[0]) < 1e-4


def test_a_second_run_is_the_first_again(model, inversion):
    """What is derived from a mask, and the maps, belong to one run; another starts with the given mask."""
    how = refinement()
    patched = engine.install(model, CPAM(refined(how)), inversion)
    patched = engine.pin(patched, inversion, tuple(inversion.schedule))
    runs = []
    for _ in range(2):
        out = tiny.sample(patched, tiny.prompt(2), tiny.prompt(3), edits.run_start(), torch.tensor([14.6, 0.0]))
        runs.append((out, how.masks.by_step))
    assert torch.equal(runs[0][0], runs[1][0])
    assert all(torch.equal(mask, runs[1][1][step]) for step, mask in runs[0][1].items())


def test_what_is_derived_goes_with_the_mask():
    masks = refined(refinement(start=0.0))
    target = Target(masks.target, masks.refinement)
    assert target.once("x", lambda: 1) == 1 and target.once("x", lambda: 2) == 1
    target._words = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0))
    target.step_done(SimpleNamespace(step=3, size=(8, 8)))
    assert target.once("x", lambda: 2) == 2
    assert target.mask.shape == (1, 8, 8)


def test_select_stretches_and_falls_back():
    """Any scale and offset; a flat map selects nothing, and its image keeps the given mask."""
    ramp = torch.arange(16.0).reshape(1, 4, 4)
    given = torch.zeros(1, 8, 8, dtype=torch.bool)
    given[:, :2, :2] = True
    for heat in (ramp, ramp * 7 - 3):
        assert torch.equal(usable(min_max(heat) > 0.45, given), ramp > 0.45 * 15)
    both = usable(min_max(torch.cat([ramp, torch.ones(1, 4, 4)])) > 0.45, given)
    assert torch.equal(both[0], ramp[0] > 0.45 * 15)
    assert torch.equal(both[1], resize(given, (4, 4))[0]) and int(both[1].sum()) == 1


@pytest.mark.parametrize("cell", [8, 16])
def test_the_viewer_shows_the_steps_and_gives_the_last_mask(cell):
    """One picture for each image of a batch; the mask comes in the image's size, by the model's cells."""
    kept = RefinedMasks()
    last = torch.zeros(2, 16, 24, dtype=torch.bool)
    last[0, 4, 6] = True
    kept.keep(torch.zeros(2, 4, 16, 24), RefinedRun({5: torch.zeros_like(last), 6: last}, cell))
    picture, mask = RefinedMasksNode.execute(kept, None).result
    assert picture.shape[0] == 2 and picture.shape[-1] == 3
    assert mask.shape == (2, 16 * cell, 24 * cell)
    assert int(mask[0, 4 * cell : 5 * cell, 6 * cell : 7 * cell].sum()) == int(mask.sum()) == cell**2
    # The one selected cell is more white in the first picture than in the second, and less black.
    white, black = ([int(at.all(-1).sum()) for at in (picture > 0.99, picture < 0.01)[i]] for i in range(2))
    assert white[0] - white[1] > 64 and black[1] - black[0] > 64


# What is refused.


@dataclass(frozen=True)
class Words:
    """A prompt of two words, as far as a refinement reads it."""

    content: tuple[int, ...] = (1, 2)
    length: int = 77

    def find(self, phrase):
        return {"blue": (1,), "blue square": (1, 2)}[phrase]


def test_words():
    assert make_refinement(Words(), "", 0.1, 0.45).columns == (1, 2)
    assert make_refinement(Words(), "blue", 0.1, 0.45).columns == (1,)
    assert make_refinement(Words(), "blue, blue square", 0.1, 0.45).columns == (1, 2)
    with pytest.raises(ValueError, match="prompt is empty"):
        make_refinement(Words(content=()), "", 0.1, 0.45)


def test_a_removal_has_nothing_to_refine():
    with pytest.raises(ValueError, match="nothing is drawn"):
        edit_masks(edits.box().float(), TASKS[3], 0.1).refined(refinement())


def test_a_start_that_leaves_no_step_is_refused(model, inversion):
    with pytest.raises(ValueError, match="none is left"):
        edit(model, inversion, refinement(start=1.0))


def test_a_prompt_of_another_length_is_refused(model, inversion):
    with pytest.raises(ValueError, match=r"77 tokens.*Prompt with Words"):
        edit(model, inversion, Refinement((1,), 154, HALF))


def test_regions_and_refinement_do_not_go_together(model, inversion):
    regions = RegionPrompts((make_region(edits.ALL.float(), tiny.prompt(6)),))
    with pytest.raises(ValueError, match="the regions say where things are"):
        edits.run(model, inversion, regions, CPAM(refined(refinement())))


def test_masks_are_there_after_a_run_only(model, inversion):
    with pytest.raises(ValueError, match="'after'"):
        _ = RefinedMasks().by_step
    how = refinement()
    edit(model, inversion, how)
    with pytest.raises(ValueError, match="another shape"):
        wide = torch.ones(1, 32, 128, dtype=torch.bool)
        edits.run(model, inversion, CPAM(refined(how, wide, wide)))
    assert how.masks.by_step  # the run did not begin
