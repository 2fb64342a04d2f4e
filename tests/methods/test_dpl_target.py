"""Target prompts keep what was learned for the nouns that they share with the source."""

from __future__ import annotations

import logging

import dpl_runs
import pytest
import tiny
import torch
from attention_edit.attention.methods.dpl.losses import Losses, Term
from attention_edit.attention.methods.dpl.target import kept_places
from attention_edit.attention.words.alignment import live_positions
from attention_edit.attention.words.prompt import read_prompt
from attention_edit.host.marks import STATES
from attention_edit.inversion.learned import LearnedText, learned_text
from attention_edit.nodes.dpl import BackgroundMaskNode, DPLNode
from attention_edit.nodes.prompt import PromptNode
from tiny_clip import ENCODERS, tiny_clip, written_out

NEVER = Losses(Term(1.0, 0.0, 25.0), Term(0.05, 0.0, 25.0), Term(0.05, 0.0, 50.0))


@pytest.fixture(scope="module", params=ENCODERS)
def learned(request):
    """A case of each family and its inversion with learned nouns."""
    case = dpl_runs.Case(request.param, request.param == "SD2")
    how = dpl_runs.settings(iterations=1, inner=0, losses=NEVER, learning_rate=0.1)
    return case, case.learn(how=how).inversion


def target(case, text, inversion):
    with torch.inference_mode():
        return PromptNode.execute(case.clip, text, inversion).args


def test_the_sources_own_text_has_the_sources_states(learned):
    case, record = learned
    conditioning, prompt = target(case, case.text, record)
    assert torch.equal(conditioning[0][1][STATES], learned_text(record.conditioning).states)
    assert torch.equal(conditioning[0][0], case.positive[0][0]) and torch.equal(prompt.states, conditioning[0][0])


def test_an_unchanged_noun_is_learned_and_a_changed_one_plain(learned):
    """Written out: the encoding with the dog's learned embedding in its new place."""
    case, record = learned
    text = "a big (horse:1.2) and a dog"
    conditioning, _ = target(case, text, record)
    states, vectors = conditioning[0][1][STATES], learned_text(record.conditioning).vectors
    assert states.shape == (len(record.sigmas) - 1, 1, 77, tiny.CONTEXT)
    for number, found in enumerate(states):
        dog = {name: value[number, 0, 1:].double() for name, value in vectors.items()}
        expected = written_out(case.clip, text, (6,), dog)
        assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_a_prompt_without_learned_words_is_plain(learned):
    case, record = learned
    conditioning, _ = target(case, "a horse", record)
    assert STATES not in conditioning[0][1]


def test_only_an_inversion_with_learned_words_is_taken(learned):
    case, _ = learned
    with pytest.raises(ValueError, match="has no learned words"):
        target(case, "a cat", case.inversion)


@pytest.fixture(scope="module")
def clip():
    return tiny_clip()


@pytest.mark.parametrize(
    ("source", "positions", "text", "kept"),
    [
        ("a cat and a dog", (2, 5), "a cat and a horse", {2: 0}),
        ("a cat and a dog", (2, 5), "a photo of a cat and one dog", {5: 0, 8: 1}),
        ("a cat and a dog", (2, 5), "a dog", {2: 1}),
        ("a cat and a dog", (5,), "a cat and a dog", {5: 0}),
        ("a cat and a cat", (5,), "a cat and a cat", {5: 0}),
    ],
)
def test_which_places_are_kept(clip, source, positions, text, kept):
    ids = read_prompt(clip, source).ids
    learned = LearnedText(torch.zeros(1), ids, positions, {})
    assert kept_places(learned, read_prompt(clip, text)) == kept


def test_parts_of_long_prompts_are_aligned(clip):
    long = "one two three four five six seven eight nine ten " * 8 + "a cat"
    prompt = read_prompt(clip, long)
    place = prompt.find("cat")
    learned = LearnedText(torch.zeros(1), prompt.ids, place, {})
    found = read_prompt(clip, long.replace("a cat", "a red cat"))
    assert kept_places(learned, found) == {found.find("cat")[0]: 0}
    assert place[0] in live_positions(prompt)


def run_node(case, nouns="cat, dog", **values):
    given = {"settings": "released code", "iterations": 1, "null_iterations": 1, "save_memory": False, **values}
    with torch.inference_mode():
        return DPLNode.execute(
            case.model, case.clip, case.inversion, case.prompt, case.negative, nouns, 7.5, **given
        ).args


def test_the_nodes_run_and_tell(caplog):
    caplog.set_level(logging.INFO)
    case = dpl_runs.Case()
    record, plot, text = run_node(case)
    assert learned_text(record.conditioning).positions == (2, 5)
    assert plot.shape[0] == 1 and plot.shape[3] == 3 and 0 <= float(plot.min()) < float(plot.max()) <= 1
    assert "learned cat, dog" in text and "UNet evaluations" in text
    assert "image 1: 2 passes; losses below" in caplog.text
    with torch.inference_mode():
        found = BackgroundMaskNode.execute(case.model, case.inversion, case.prompt, "cat, dog", 5, 0.2, 1).args
    assert found[0].shape == (1, 128, 128) and torch.equal(found[1], 1 - found[0])
    given = run_node(case, background=found[0])[0]
    assert torch.equal(given.null_states, record.null_states), "without a mask, the node finds this one"
    assert "It took 2 UNet evaluations" in found[3]
    assert run_node(case, settings="paper", background=dpl_runs.mask())[0].null_guidance == 7.5


def test_the_nodes_list_the_words_that_there_are():
    case = dpl_runs.Case(steps=2)
    with pytest.raises(ValueError, match=r"'horse' is not in the prompt\. Its words are: a, cat, and, dog"):
        run_node(case, "cat, horse")
    with pytest.raises(ValueError, match=r"Name the nouns to learn.*: a, cat, and, dog"):
        run_node(case, " ")
    with pytest.raises(ValueError, match=r"stands 1 time\(s\) in the prompt"):
        run_node(case, "cat#2")
    with pytest.raises(ValueError, match="'horse' is not in the prompt"), torch.inference_mode():
        BackgroundMaskNode.execute(case.model, case.inversion, case.prompt, "horse", 5, 0.2, 1)
