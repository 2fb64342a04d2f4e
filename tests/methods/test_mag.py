"""MAG-Edit: its gradient, its update, and its loop against the method written out plainly."""

from __future__ import annotations

from dataclasses import dataclass

import comfy.samplers
import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine import reading
from attention_edit.attention.engine.acts import Act, How, Site
from attention_edit.attention.engine.control import MapControl
from attention_edit.attention.masks.cells import dilate, resize
from attention_edit.attention.methods.cpam import CPAM
from attention_edit.attention.methods.mag.constraints import SPATIAL, TOKEN, evaluate
from attention_edit.attention.methods.mag.control import MAG
from attention_edit.attention.methods.mag.curve import Curve
from attention_edit.attention.methods.mag.install import add_guidance
from attention_edit.attention.methods.mag.parts import Negative, look_up
from attention_edit.attention.methods.p2p import P2P, REFINE
from mag_runs import CELLS, WORDS, Probe, asked, guided, part, slope_of, written_out
from prompts import prompt


def whole_pass(monkeypatch):
    """Make the pass go on behind the last map, as if there were no early end."""

    def take(self, call):
        if call.layer.index in self.wanted:
            self.maps[call.layer.index] = reading.map_of(call)

    monkeypatch.setattr(reading.Reading, "take", take)


# The gradient.


@pytest.mark.parametrize(("kind", "v"), [("SD1", False), ("SD2", True), ("SDXL", False)])
def test_the_truncated_pass_has_the_gradient_of_the_whole_one(kind, v, monkeypatch):
    model = tiny.tiny_model(kind, v)
    short = asked(model, slope_of, kind)
    again = asked(model, slope_of, kind, checkpointing=True) if kind == "SD1" else short
    whole_pass(monkeypatch)
    full = asked(model, slope_of, kind)
    assert float(full.abs().max()) > 0
    assert edits.difference(short, full) < 1e-6
    assert edits.difference(again, full) < 1e-5


@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_behind_the_last_map_runs(model, checkpointing):
    """Layers 10 to 15 of an SD1.x are never called on the way to maps of layers 4 to 9, nor on the way back."""
    calls = []
    patched = model.clone()
    patched.set_model_attn1_patch(lambda n, c, v, eo: calls.append(eo["transformer_index"]) or (n, c, v))

    def ask(*given):
        calls.clear()
        slope_of(*given)
        return list(calls)

    seen = asked(patched, ask, checkpointing=checkpointing)
    assert seen == [*range(10), *(range(8, -1, -1) if checkpointing else ())]


@pytest.mark.parametrize("constraint", [TOKEN, SPATIAL], ids=["token", "spatial"])
def test_gradient_by_the_latent_is_the_central_difference(constraint):
    """In float64, through the host's own call."""
    model = tiny.tiny_model(dtype=torch.float64)
    values = []

    def ask(probe, run, x, network):
        found = slope_of(probe, run, x, network, double=True)
        along = torch.randn(x.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        latent = torch.zeros(x.shape).copy_(x).double()
        step = 1e-4
        for sign in (1, -1):
            with network.slopes(probe.layers(run.family)) as slope:
                slope(latent + sign * step * along, lambda maps: values.append(loss(maps)) or None)
        difference = (values[0] - values[1]) / (2 * step)
        return float((found * along).sum()), difference

    def loss(maps):
        masks = [resize(edits.box(), (4, 4)).flatten(1)] * 5
        return evaluate(constraint, list(maps.values()), masks, WORDS)[0].sum().item()

    slope, difference = asked(model, ask, constraint=constraint)
    assert slope == pytest.approx(difference, rel=1e-5)


def test_images_of_a_batch_do_not_touch(model):
    """Each image's gradient is its own."""
    both = asked(model, slope_of, batch=2)

    def first(probe, run, x, network):
        return slope_of(probe, run, x, network, lambda maps: probe.loss(run, maps, probe.words)[0][0])

    alone = asked(model, first, batch=2)
    assert edits.difference(both[:1], alone[:1]) < 1e-5 and not alone[1].any()


def test_no_gradient_reaches_the_source(model, inversion):
    """The source's features are constants of the pass."""
    seen = []

    @dataclass(frozen=True, eq=False)
    class Spying(CPAM):
        def preserve(self, call):
            if call.guiding:
                seen.append((call.q.requires_grad, call.source.k.requires_grad, call.source.k.is_inference()))
            return super().preserve(call)

    under = Spying(edits.masks(), normal_share=0.0)
    guided(model, inversion, part(iterations=1), under=[under])
    assert seen and set(seen) == {(True, False, False)}


# The update.


def test_the_latent_outside_the_mask_is_bit_for_bit_the_same(model, inversion):
    probe = Probe(WORDS, edits.box(), iterations=2)
    guided(model, inversion, probe)
    inside = resize(edits.box(), CELLS)[:, None].expand(1, 4, -1, -1)
    assert len(probe.seen) == 2
    for before, after in probe.seen:
        assert torch.equal(before[~inside], after[~inside])
        assert (before[inside] != after[inside]).all()


def test_two_parts_change_the_union_and_share_the_guidance(model, inversion):
    """Eq 5: a part beside its twin is the part alone, whatever their weights; other masks join."""
    alone = guided(model, inversion, part())
    twins = guided(model, inversion, part(weight=3.0), part(weight=0.5))
    assert edits.difference(twins, alone) < 1e-4
    other = edits.box(80, 80, 32, 32)
    probe = Probe(WORDS, edits.box(), iterations=1)
    guided(model, inversion, probe, part(other, iterations=1))
    union = (resize(edits.box(), CELLS) | resize(other, CELLS))[:, None].expand(1, 4, -1, -1)
    before, after = probe.seen[0]
    assert torch.equal(before != after, union)


def test_towards_and_away_from_the_same_word_cancel(model, inversion):
    """Eq 3 with both terms equal leaves no slope but rounding."""
    bare = guided(model, inversion, part(iterations=0))
    negative = Negative(WORDS, tiny.prompt(2), 1.0)
    assert edits.difference(guided(model, inversion, part(scale=50.0, negative=negative)), bare) < 1e-3
    other = Negative(((9,),), tiny.prompt(8), 1.0)
    assert edits.difference(guided(model, inversion, part(scale=50.0, negative=other)), bare) > 1e-3


def test_words_that_cannot_be_reached_are_an_error(model, inversion):
    """As when a control copies every map from the source."""

    @dataclass(frozen=True, eq=False)
    class Copied(MapControl):
        name = "copied maps"
        guidable = True

        def acts_on(self, family):
            return (Act(Site.CROSS, family.layers, how=How.STANDS_ON),)

        def rewritten(self, state, call, source, target):
            return target.detach()

    with pytest.raises(ValueError, match=r"'blue'.*nothing changes their attention"):
        guided(model, inversion, part(curve=Curve("blue")), under=[Copied()])


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside a new word"])
def test_words_that_prompt_to_prompt_copies_are_an_error(model, inversion, beside):
    """A word of both prompts: its map is the source's, though the share of it could still be raised by lowering
    the new word beside it."""
    source, target = prompt("a cat on a mat"), prompt("a black cat on a mat")
    p2p = P2P(source, target, REFINE)
    cat, black = (look_up(target, word) for word in ("cat", "black"))
    parts = [MAG(cat, edits.box(), iterations=1, curve=Curve("cat"))]
    parts += [MAG(black, edits.box(), iterations=1, curve=Curve("black"))] if beside else []
    with pytest.raises(ValueError, match=r"'cat': Prompt-to-Prompt copies"):
        guided(model, inversion, *parts, under=[p2p])
    guided(model, inversion, MAG(black, edits.box(), iterations=1), under=[p2p])


def test_maps_under_cpam_are_those_that_its_layers_use(model, inversion):
    """Eq 4: outside of the edit's mask no pixel reads the prompt, so the word's attention is all inside."""
    one = part(constraint=SPATIAL, iterations=1, mask=edits.masks().target)
    with pytest.raises(ValueError, match="spatial ratio needs"):
        guided(model, inversion, one, under=[CPAM(edits.masks(), normal_share=0.0)])
    assert [point.ratio for point in one.curve.points] == pytest.approx([1.0])
    free = part(constraint=SPATIAL, iterations=1, mask=edits.masks().target)
    guided(model, inversion, free, under=[CPAM(edits.masks(), normal_share=0.0, localized=False)])
    assert free.curve.points[0].ratio < 0.9


# The loop.


@pytest.mark.parametrize("backbone", [False, True], ids=["alone", "on Prompt-to-Prompt"])
def test_equals_the_loop_written_out(model, backbone):
    """float32, guidance 7.5, euler: the update, the sampler's step from it, and the blending."""
    inversion = edits.invert(model, steps=6)
    # WORDS are new ones of the target: "red", and "striped thing".
    p2p = P2P(prompt("a cat on a mat"), prompt("a cat red striped thing on a mat"), REFINE, self_window=(0.0, 0.5))
    under = [p2p] if backbone else []
    expected = written_out(model, inversion, edits.box(), 2, 50.0, 7.5, 0.5, p2p if backbone else None)

    def run(**values):
        out = guided(model, inversion, part(**{"scale": 50.0, "blend": 0.5, **values}), under=under)
        return model.get_model_object("latent_format").process_in(out)

    assert edits.difference(run(), expected) < 1e-4
    assert edits.difference(run(iterations=0), expected) > 1e-3
    unguided = written_out(model, inversion, edits.box(), 0, 50.0, 7.5, 0.5, p2p if backbone else None)
    assert edits.difference(run(iterations=0), unguided) < 1e-4
    assert edits.difference(run(blend=1.0), expected) > 1e-3


def test_no_iterations_is_the_run_without_guidance_bit_for_bit(model, inversion):
    bare = part(iterations=0, blend=1.0)
    assert torch.equal(guided(model, inversion, bare), edits.run(model, inversion))
    under = CPAM(edits.masks(), normal_share=0.0)
    assert torch.equal(guided(model, inversion, bare, under=[under]), edits.run(model, inversion, under))


def test_after_the_last_blend_the_image_is_kept_outside_the_masks(model, inversion):
    """z_0 outside the 3 x 3 dilated union of all masks; the nearer part's start counts."""
    other = edits.box(88, 88, 24, 24)
    out = guided(model, inversion, part(iterations=1, blend=1.0), part(other, iterations=1))
    image = model.get_model_object("latent_format").process_out(inversion.latents[0])
    free = dilate(resize(edits.box(), CELLS) | resize(other, CELLS), 1)
    kept = (out - image).abs().amax(1)
    assert float(kept[~free].max()) < 1e-5 < float(kept[free].max())
    never = guided(model, inversion, part(iterations=1, blend=1.0))
    assert float((never - image).abs().amax(1)[~free].max()) > 1e-3


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpm_2", "lms", "dpmpp_2m"])
def test_samplers_that_go_on_from_their_own_latent(model, inversion, sampler):
    """The callback would say if one did not. Second evaluations are guided too, by the level that they are at."""
    one = part(iterations=1)
    out = guided(model, inversion, one, sampler=sampler)
    assert torch.isfinite(out).all()
    assert len(one.curve.points) == {"heun": 3, "dpm_2": 4}.get(sampler, 2)


def test_a_sampler_that_goes_on_from_a_copy_is_refused(model, inversion):
    def copying(model, x, sigmas, extra_args, callback, disable):
        denoised = model(x.clone(), sigmas[:1].expand(len(x)), **extra_args)
        callback({"x": x, "i": 0, "denoised": denoised})
        return denoised

    patched = add_guidance(model, part(iterations=1), inversion)
    guider = comfy.samplers.CFGGuider(patched)
    guider.set_conds(tiny.prompt(2), tiny.prompt(3))
    start, sigmas = tiny.latent(4), torch.tensor(inversion.schedule)
    with torch.inference_mode(), pytest.raises(ValueError, match="copy"):
        guider.sample(torch.zeros_like(start), start, comfy.samplers.KSAMPLER(copying), sigmas, disable_pbar=True)
    mask = torch.ones(1, 1, *CELLS)
    with pytest.raises(ValueError, match="noise mask"):
        tiny.sample(patched, tiny.prompt(2), tiny.prompt(3), start, sigmas, denoise_mask=mask)
