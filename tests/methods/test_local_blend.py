"""Local blend: its mask from accumulated maps, and what it does to the latents."""

from __future__ import annotations

import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine.install import install, pin
from attention_edit.attention.maps.probabilities import cross_map
from attention_edit.attention.masks.cells import resize
from attention_edit.attention.methods import local_blend as module
from attention_edit.attention.methods.cpam import CPAM
from attention_edit.attention.methods.local_blend import LocalBlend, _above
from attention_edit.attention.methods.p2p import P2P
from prompts import prompt
from sources import generated

CAT, DOG = prompt("a cat on a mat"), prompt("a dog on a mat")
BLEND = LocalBlend(CAT, DOG, ["cat"], ["dog"], start=0.0)


def test_above():
    """Spread by three cells, enlarged, divided by its largest value, above 0.3."""
    maps = torch.zeros(1, 8, 8)
    maps[0, 4, 4], maps[0, 0, 0] = 10.0, 2.9
    chosen = _above(maps, (16, 16), 0.3, 3)
    expected = torch.zeros(1, 16, 16, dtype=torch.bool)
    expected[:, 6:12, 6:12] = True
    assert torch.equal(chosen, expected)
    assert int(_above(maps, (8, 8), 0.2, 1).sum()) == 2


@pytest.mark.parametrize("packed", [False, True])
def test_the_source_stays_outside_the_mask(model, packed, monkeypatch):
    """z = M z + (1 - M) z*; the mask is that of either word's map, also in a packed run."""
    inversion, _ = generated(model)
    seen = []
    original = LocalBlend.mask

    def spy(self, run, state, like):
        seen.append(original(self, run, state, like))
        return seen[-1]

    monkeypatch.setattr(LocalBlend, "mask", spy)
    blend = LocalBlend(CAT, DOG, ["cat"], ["dog"], start=0.0, threshold=0.9)
    out = edits.run(model, inversion, P2P(CAT, DOG), blend, packed=packed)
    image = model.get_model_object("latent_format").process_out(inversion.latents[0])
    mask = seen[-1][0, 0] > 0
    assert 0 < mask.float().mean() < 1
    error = (out - image).abs().amax(1)[0]
    assert float(error[~mask].max()) < 1e-5 and float(error[mask].mean()) > 1e-2


def test_on_cpam_nothing_outside_its_mask_attends_to_the_prompt(model):
    """So the target's word has no map there, and the source's decides."""
    inversion, _ = generated(model)
    seen, mask = [], edits.box()
    control = CPAM(edits.masks(mask, mask))
    look = LocalBlend.look

    class Seen(LocalBlend):
        def look(self, call):
            look(self, call)
            seen.append(call.state.maps)

    edits.run(model, inversion, control, Seen(CAT, DOG, ["cat"], ["dog"], start=0.0))
    outside = ~(resize(mask, (4, 4)) > 0)[0]
    assert outside.any() and not outside.all()
    assert float(seen[-1]["target"][0, outside].max()) == 0 < float(seen[-1]["target"][0, ~outside].min())
    assert float(seen[-1]["source"].min()) > 0


@pytest.mark.parametrize(("tokens", "text"), [(77, "a dog on a mat " * 20), (154, "a dog on a mat")])
def test_a_conditioning_of_another_length_is_refused(model, inversion, tokens, text):
    """A multiple of the prompt's length too: it is no repetition of it."""
    control = LocalBlend(CAT, prompt(text), ["cat"], ["dog"], start=0.0)
    patched = pin(install(model, control, inversion), inversion, tuple(inversion.schedule))
    with pytest.raises(ValueError, match=rf"{tokens} text tokens, Local Blend's target_prompt {231 - tokens}"):
        tiny.sample(patched, tiny.prompt(2, tokens=tokens), tiny.prompt(3), edits.run_start(), torch.tensor([5.0, 0.0]))


def test_full_and_empty_masks(model, monkeypatch):
    inversion, image = generated(model)
    plain = edits.run(model, inversion, P2P(CAT, DOG))
    monkeypatch.setattr(module, "_above", lambda total, size, *_: torch.ones(1, *size, dtype=torch.bool))
    assert edits.difference(edits.run(model, inversion, P2P(CAT, DOG), BLEND), plain) < 1e-5
    monkeypatch.setattr(module, "_above", lambda total, size, *_: torch.zeros(1, *size, dtype=torch.bool))
    assert edits.difference(edits.run(model, inversion, P2P(CAT, DOG), BLEND), image) < 1e-5


def test_maps_are_added_up_as_prompt_to_prompt_rewrites_them(model, monkeypatch):
    """Over the five 16 x 16 layers and all steps; of the target the rewritten map (here: the source's, moved)."""
    inversion, _ = generated(model, steps=3)
    runs, layers = [], []
    original = LocalBlend.look

    def spy(self, call):
        runs.append(call.run)
        if any(call.conditional):
            rows = call.rows(call.conditional.index(True))
            layers.append(
                (call.layer.index, cross_map(call.source.q[rows], call.source.k[rows], call.heads, range(77)))
            )
        return original(self, call)

    monkeypatch.setattr(LocalBlend, "look", spy)
    control = P2P(CAT, DOG, cross=(0.0, 1.0))
    edits.run(model, inversion, control, BLEND)
    assert [index for index, _ in layers] == [4, 5, 7, 8, 9] * 2
    sums = runs[-1].states[BLEND].maps
    expected = sum(maps[..., CAT.find("cat")[0]] for _, maps in layers)
    assert edits.difference(sums["source"].flatten(1), expected) < 1e-5
    assert edits.difference(sums["target"], sums["source"]) < 1e-5, "a swapped word has the source word's map"


def test_subtracted_words_stay(model):
    inversion, _ = generated(model)
    without, kept = (
        LocalBlend(CAT, DOG, ["cat"], ["dog"], words, start=0.0, threshold=0.5, subtract_threshold=0.9)
        for words in ([], ["mat"])
    )
    assert not torch.equal(edits.run(model, inversion, without), edits.run(model, inversion, kept))
    assert set(kept.columns()) == {"source", "target", "source kept", "target kept"}


def test_words():
    assert LocalBlend(CAT, DOG, ["cat"], ["dog"], ["dog"]).columns()["source kept"] == ()
    with pytest.raises(ValueError, match="'horse' is not in the prompt"):
        LocalBlend(CAT, DOG, ["horse"], ["dog"]).columns()
    with pytest.raises(ValueError, match="'horse' is not in the prompt"):
        LocalBlend(CAT, DOG, ["cat"], ["dog"], ["horse"]).columns()
    with pytest.raises(ValueError, match="needs a word"):
        LocalBlend(CAT, DOG, [], ["dog"]).columns()


def test_no_steps_are_the_stock_sampler_bit_for_bit(model, inversion):
    control = LocalBlend(CAT, DOG, ["cat"], ["dog"], start=1.0)
    assert torch.equal(edits.run(model, inversion, control), edits.run(model, inversion))


def test_the_first_blending_is_on_the_outcome_of_its_step(model):
    """Of 50 steps the 11th is the first; its input is still the sampler's own."""
    inversion, _ = generated(model, steps=10)
    blended = []

    class Spy(LocalBlend):
        def before(self, run, state, x, network):
            out = super().before(run, state, x, network)
            blended.append((run.step, not torch.equal(out, x)))
            return out

    spy = Spy(CAT, DOG, ["cat"], ["dog"], start=0.2, threshold=1.0)
    edits.run(model, inversion, P2P(CAT, DOG), spy)
    assert blended == [(i, i > 2) for i in range(9)]


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_a_place_that_the_mask_comes_to_begins_at_the_source(model, monkeypatch, sampler):
    """The latent itself is replaced: nothing remains there of what was drawn before the mask moved away."""
    inversion, _ = generated(model, steps=6)
    seen = []

    def nowhere_at_first(self, run, state, latent):
        return torch.full_like(latent[:, :1], float(run.step >= 4))

    monkeypatch.setattr(LocalBlend, "mask", nowhere_at_first)
    moved = LocalBlend.before

    def spy(self, run, state, x, network):
        out = moved(self, run, state, x, network)
        if 1 < run.step < 4:
            seen.append(edits.difference(out, run.inversion.at(run.sigma)))
        return out

    monkeypatch.setattr(LocalBlend, "before", spy)
    edits.run(model, inversion, P2P(CAT, DOG), BLEND, sampler=sampler)
    assert seen and max(seen) < 1e-6
