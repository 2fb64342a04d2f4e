"""EmbCtrl: only the text states of changed words are the target's."""

from __future__ import annotations

import pytest
import tiny
import torch
from attention_edit.attention.methods.embctrl import changed_tokens, embctrl
from prompts import prompt

CAT, DOG, BLACK = prompt("a cat on a mat"), prompt("a dog on a mat"), prompt("a black cat on a mat")


def test_the_same_prompt_gives_the_sources_states():
    source = tiny.prompt(1)
    assert torch.equal(embctrl(CAT, source, CAT, tiny.prompt(2))[0][0], source[0][0])


def test_exactly_the_changed_tokens_are_the_targets():
    before, after = tiny.prompt(1), tiny.prompt(2)
    states = embctrl(CAT, before, DOG, after)[0][0]
    (changed,) = DOG.find("dog")
    assert torch.equal(states[:, changed], after[0][0][:, changed])
    others = [place for place in range(77) if place != changed]
    assert torch.equal(states[:, others], before[0][0][:, others])


def test_added_words_are_aligned():
    found = changed_tokens(CAT, BLACK)
    assert found[BLACK.find("black")[0]] is None
    assert found[BLACK.find("mat")[0]] == CAT.find("mat")[0]
    assert found[-1] == 76 and found.count(None) == 1


def test_what_comes_beside_the_states_is_the_targets():
    after = tiny.prompt(2, "SDXL")
    result = embctrl(CAT, tiny.prompt(1, "SDXL"), DOG, after)
    assert torch.equal(result[0][1]["pooled_output"], after[0][1]["pooled_output"])
    assert result[0][0] is not after[0][0] and result[0][1] is not after[0][1]


def test_other_conditionings_are_refused():
    with pytest.raises(ValueError, match=r"source conditioning holds 154 text tokens.*77"):
        embctrl(CAT, tiny.prompt(1, tokens=154), DOG, tiny.prompt(2))
    with pytest.raises(ValueError, match=r"target conditioning holds 77, 77 .*2 part"):
        embctrl(CAT, tiny.prompt(1), DOG, tiny.prompt(2) + tiny.prompt(3))
    with pytest.raises(ValueError, match="the same CLIP"):
        embctrl(CAT, [[torch.zeros(1, 77, 8), {}]], DOG, tiny.prompt(2))
