"""Dynamic Prompt Learning's inversion: what the paper promises, its record, its work, and what it refuses."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace

import comfy.conds
import comfy.model_management
import dpl_runs
import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine import learned_text
from attention_edit.attention.engine.install import install
from attention_edit.attention.engine.moment import Moment
from attention_edit.attention.methods.background import ExactBackground
from attention_edit.attention.methods.dpl import learner
from attention_edit.attention.methods.dpl.losses import Losses, Term
from attention_edit.attention.methods.dpl.settings import OF_PAPER, RELEASED
from attention_edit.host import text_encoder
from attention_edit.host.families import family_of
from attention_edit.host.marks import STATES
from attention_edit.inversion.learned import learned_text as learned_of
from attention_edit.inversion.null_text import NullTextInversion
from attention_edit.inversion.reconstruct import reconstruct


@pytest.fixture(scope="module")
def case():
    return dpl_runs.Case()


NEVER = Losses(Term(1.0, 0.0, 25.0), Term(0.05, 0.0, 25.0), Term(0.05, 0.0, 50.0))
AT_ONCE = Losses(Term(1.0, 9.0, 1e9), Term(0.05, 9.0, 1e9), Term(0.05, 9.0, 1e9))


@pytest.fixture(scope="module")
def found(case):
    """A run that never finds its losses low enough."""
    return case.learn(how=dpl_runs.settings(losses=NEVER))


def test_the_losses_fall_and_values_carry_on_to_the_next_step(found):
    losses = Losses()
    for learned in found.learned[0]:
        sums = [sum(losses.term(name).weight * value for name, value in one.items()) for one in learned.losses]
        assert sums[-1] < sums[0] and not learned.content
    first, second = found.learned[0][:2]
    assert all(not torch.equal(first.rows[name], second.rows[name]) for name in first.rows)


def test_the_record_holds_every_step_from_clean_to_noisy(case, found):
    record, steps = found.inversion, len(case.inversion.sigmas) - 1
    text = learned_of(record.conditioning)
    assert text.states.shape == (steps, 1, 77, tiny.CONTEXT) and text.positions == (2, 5)
    assert text.vectors["l"].shape == (steps, 1, 2, tiny.CONTEXT) and text.tokens == case.prompt.ids
    for i, learned in enumerate(reversed(found.learned[0])):
        assert torch.equal(text.states[i], learned.states) and torch.equal(text.vectors["l"][i, 0], learned.rows["l"])
    assert torch.equal(record.conditioning[0][0], case.positive[0][0])
    assert record.null_states.shape == (steps, 1, 77, tiny.CONTEXT) and record.null_guidance == 7.5
    assert record.method == "DDIM inversion + learned cat, dog"


def test_only_what_follows_a_noun_changes(case, found):
    """The text is causal: begin and "a" are bit for bit those of the prompt."""
    states = learned_of(found.inversion.conditioning).states
    assert torch.equal(states[:, 0, :2], case.positive[0][0][:, :2].expand(len(states), -1, -1))
    assert not torch.equal(states[0, 0, 2], case.positive[0][0][0, 2])


def test_reconstruction_uses_the_texts_of_each_step(case, found):
    with torch.inference_mode():
        again = reconstruct(case.model, found.inversion, 7.5, None)
        plain = replace(found.inversion, conditioning=case.positive)
        without = reconstruct(case.model, plain, 7.5, None)
    assert again.errors == pytest.approx(found.inversion.errors, rel=1e-3, abs=1e-5)
    assert without.errors != pytest.approx(found.inversion.errors, rel=1e-3, abs=1e-5)


@pytest.fixture(scope="module")
def content(case):
    """A run whose losses are low enough at once."""
    return case.learn(how=dpl_runs.settings(losses=AT_ONCE))


def test_low_losses_mean_no_update(case, content):
    """One pass per step, the prompt's own states, and the null text of an inversion that begins anew."""
    states = learned_of(content.inversion.conditioning).states
    assert torch.equal(states, case.positive[0][0].expand_as(states))
    assert all(len(learned.losses) == 1 and learned.content for learned in content.learned[0])
    how = NullTextInversion(inner=2, early_stop=0.0, anew=True, checkpointing=False)
    with torch.inference_mode():
        null = how(case.model, case.inversion, case.negative, 7.5).inversion
    assert torch.allclose(content.inversion.null_states, null.null_states, atol=1e-6)


def test_evaluations_are_planned_counted_and_true(case, content, caplog):
    steps = len(case.inversion.sigmas) - 1
    with caplog.at_level(logging.INFO):
        found = case.learn(how=dpl_runs.settings(losses=NEVER))
    assert (found.cost.forward, found.cost.backward) == (steps * (3 + 4), steps * (3 + 2))
    assert dpl_runs.settings().planned(steps, 1) == (found.cost.forward, found.cost.backward)
    assert f"plans at most {steps * 7} UNet evaluations and {steps * 5} backward, {steps * 3} of each" in caplog.text
    assert (content.cost.forward, content.cost.backward) == (steps * (1 + 4), steps * 2)


def test_passes_for_the_losses_end_at_the_last_map(case, monkeypatch):
    """Counted on the UNet's own blocks: none behind the last coarse layer runs in them."""
    unet, calls = case.model.model.diffusion_model, {"first": 0, "last": 0}
    handles = [
        block.register_forward_pre_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
        for name, block in (("first", unet.input_blocks[0][0]), ("last", unet.output_blocks[-1][0]))
    ]
    try:
        found = case.learn(how=dpl_runs.settings(losses=NEVER))
    finally:
        for handle in handles:
            handle.remove()
    steps = len(case.inversion.sigmas) - 1
    assert calls == {"first": found.cost.forward, "last": found.cost.forward - 3 * steps}


def test_checkpointing_finds_the_same(case, found):
    how = dpl_runs.settings(losses=NEVER)
    again = case.learn(how=replace(how, null=replace(how.null, checkpointing=True)))
    for a, b in zip(again.learned[0], found.learned[0], strict=True):
        for one, other in zip(a.losses, b.losses, strict=True):
            assert one == pytest.approx(other, rel=1e-5)


def test_one_noun_learns_from_the_background_alone(case):
    found = case.learn("dog")
    for learned in found.learned[0]:
        assert all(list(losses) == ["bg"] and 0 <= losses["bg"] <= 1 for losses in learned.losses)
    assert torch.isfinite(learned_of(found.inversion.conditioning).states).all()


def test_without_background_one_noun_has_nothing_to_learn(case, caplog):
    found = case.learn("dog", dpl_runs.mask(0))
    assert all(learned.losses == () for learned in found.learned[0])
    assert found.cost.forward == 4 * (len(case.inversion.sigmas) - 1)
    assert "one noun and no background leave nothing to learn" in caplog.text
    both = case.learn("dog, cat", dpl_runs.mask(0))
    assert list(both.learned[0][0].losses[0]) == ["at", "dj"]


def test_a_noun_that_stands_twice_has_one_embedding_or_is_chosen():
    case = dpl_runs.Case(text="a cat and a (catterpillar:1.2) near a cat")
    how = dpl_runs.settings(iterations=2, inner=0, losses=NEVER)
    words = {word: case.prompt.occurrences(word) for word in ("cat", "catterpillar")}
    assert len(words["cat"]) == 2 and len(words["catterpillar"][0]) > 1
    both = case.learn("cat, catterpillar", how=how)
    text, cats = learned_of(both.inversion.conditioning), [places[0] for places in words["cat"]]
    first, second = (text.vectors["l"][:, 0, text.positions.index(place)] for place in cats)
    assert torch.equal(first, second)
    one = case.learn("cat#2, catterpillar", how=how)
    text = learned_of(one.inversion.conditioning)
    assert text.positions == (cats[1], *words["catterpillar"][0])
    unchanged = text.states[:, 0, : words["catterpillar"][0][0]]
    assert torch.equal(unchanged, case.positive[0][0][:, : unchanged.shape[1]].expand_as(unchanged))


def test_prompts_of_several_parts():
    """A noun of the second part moves that part's states alone."""
    case = dpl_runs.Case(text="one two three four five six seven eight nine ten " * 8 + "a cat and a dog")
    found = case.learn(how=dpl_runs.settings(iterations=2, inner=0, losses=NEVER))
    states = learned_of(found.inversion.conditioning).states
    assert states.shape[2] == 154
    assert torch.equal(states[:, 0, :77], case.positive[0][0][:, :77].expand(len(states), -1, -1))
    assert not torch.equal(states[0, 0, 77:], case.positive[0][0][0, 77:])


def test_images_of_a_batch_learn_alone():
    both = dpl_runs.Case(batch=2)
    background = torch.cat([dpl_runs.mask(7), dpl_runs.mask(11)])
    found = both.learn(background=background)
    for i in range(2):
        single = replace(both.inversion, latents=both.inversion.latents[:, i : i + 1])
        alone = both.learn(background=background[i : i + 1], inversion=single)
        for name in ("null_states",):
            assert torch.allclose(getattr(found.inversion, name)[:, i : i + 1], getattr(alone.inversion, name))
        states = [learned_of(x.inversion.conditioning).states for x in (found, alone)]
        assert torch.allclose(states[0][:, i : i + 1], states[1])
    assert found.inversion.errors[0] == 0


def test_the_papers_settings_are_an_alternative(case, found):
    assert RELEASED.losses.total is False and OF_PAPER.losses.total is True
    assert (RELEASED.iterations, RELEASED.null.inner, RELEASED.null.early_stop, RELEASED.null.anew) == (21, 51, 0, True)
    assert (RELEASED.learning_rate, RELEASED.weight_decay) == (1e-3, 1e-2)
    assert (OF_PAPER.null.inner, OF_PAPER.null.early_stop, OF_PAPER.null.anew) == (10, 1e-5, False)
    how = replace(
        OF_PAPER, iterations=2, null=NullTextInversion(inner=0, checkpointing=False), losses=replace(NEVER, total=True)
    )
    (first, *_), text = case.learn(how=how).learned[0], found.learned[0][0]
    assert first.losses[0]["dj"] == pytest.approx(2 * text.losses[0]["dj"], rel=1e-5)
    assert first.losses[0]["bg"] == pytest.approx(2 * text.losses[0]["bg"], rel=1e-5)
    assert isinstance(how.optimiser([torch.zeros(1, requires_grad=True)]), torch.optim.SGD)


@pytest.mark.parametrize("place", ["text", "unet"])
def test_cancel_stops_within_an_iteration_and_leaves_nothing(case, monkeypatch, place):
    module, calls = {"text": text_encoder, "unet": learner}[place], []
    original = module.gradient

    def interrupt(*arguments):
        calls.append(1)
        if len(calls) == 3:
            comfy.model_management.interrupt_current_processing()
        return original(*arguments)

    before = edits.run(case.model, case.inversion)
    monkeypatch.setattr(module, "gradient", interrupt)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        case.learn(how=dpl_runs.settings(losses=NEVER))
    comfy.model_management.interrupt_current_processing(False)
    assert len(calls) == 3
    assert torch.equal(edits.run(case.model, case.inversion), before)
    with torch.inference_mode():
        assert torch.equal(case.clip.encode_from_tokens(case.clip.tokenize(case.text)), case.positive[0][0])


def test_what_does_not_fit_is_refused(case):
    with pytest.raises(ValueError, match=r"'horse' is not in the prompt\. Its words are: a, cat, and, dog"):
        case.learn("horse")
    with pytest.raises(ValueError, match=r"Name the nouns to learn.*a, cat, and, dog"):
        case.learn("")
    with pytest.raises(ValueError, match="'cat#1' and 'cat' name the same place"):
        case.learn("cat, cat#1")
    with pytest.raises(ValueError, match=r"background of Dynamic Prompt Learning is 64x128"):
        case.learn(background=torch.ones(1, 128, 64))
    with pytest.raises(ValueError, match="made with another prompt, or another CLIP"):
        case.learn(inversion=replace(case.inversion, conditioning=tiny.prompt(5)))
    patched = copy.copy(case)
    patched.model = install(case.model, ExactBackground(edits.box()), case.inversion)
    with pytest.raises(ValueError, match="Dynamic Prompt Learning already carries edits"):
        patched.learn(inversion=case.inversion)


def conds_of(record, key="uuid"):
    states, options = record.conditioning[0]
    return [{**options, key: 1, "model_conds": {"c_crossattn": comfy.conds.CONDCrossAttn(states)}}]


def test_the_engine_puts_each_steps_states_in_place(case, found):
    """At stored levels and between them; prompts that learned nothing stay the same objects."""
    record = found.inversion
    states = learned_of(record.conditioning).states
    run = Moment(family_of(case.model), 0, record.schedule, (16, 16), None, record)
    for number in range(1, len(record.sigmas)):
        for sigma in (record.sigmas[number], (record.sigmas[number] + record.sigmas[number - 1]) / 2):
            run.move_to(sigma)
            (cond,) = learned_text.with_learned(run, conds_of(record))
            assert torch.equal(cond["model_conds"]["c_crossattn"].cond, states[number - 1])
            assert cond["uuid"] == 1
    plain = conds_of(case.inversion)
    assert learned_text.with_learned(run, plain)[0] is plain[0] and learned_text.with_learned(run, None) is None
    short = conds_of(record)
    short[0][STATES] = states[:1]
    run.move_to(record.sigmas[-1])
    with pytest.raises(ValueError, match="learned words holds 1 steps"):
        learned_text.with_learned(run, short)
