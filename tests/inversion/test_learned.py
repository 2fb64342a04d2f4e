"""Learned words lie in the source prompt's conditioning, and go with an inversion wherever it goes."""

from __future__ import annotations

from dataclasses import replace

import comfy.conds
import folder_paths
import pytest
import tiny
import torch
from attention_edit.host.conditioning import at_step
from attention_edit.host.marks import STATES
from attention_edit.inversion import store
from attention_edit.inversion.fingerprint import Digest
from attention_edit.inversion.learned import LearnedText, learned_text
from attention_edit.inversion.record import Inversion

TOKENS = (49406, 320, -5, 49407)


def record() -> Inversion:
    return Inversion(torch.randn(3, 2, 4, 8, 8), (0.03, 0.5, 2.0), 3, 0, "SDXL", "eps", tiny.prompt(3, "SDXL"))


def text() -> LearnedText:
    vectors = {"l": torch.randn(2, 2, 1, 8), "g": torch.randn(2, 2, 1, 8)}
    return LearnedText(torch.randn(2, 2, 77, tiny.CONTEXT), TOKENS, (2,), vectors)


def same(a: LearnedText | None, b: LearnedText) -> bool:
    assert a is not None and a.vectors.keys() == b.vectors.keys()
    equal = torch.equal(a.states, b.states) and all(torch.equal(a.vectors[k], b.vectors[k]) for k in b.vectors)
    return equal and (a.tokens, a.positions) == (b.tokens, b.positions)


def test_what_is_put_on_is_found_again():
    plain, learned = record().conditioning, text()
    found = learned.put_on(plain)
    assert same(learned_text(found), learned)
    assert torch.equal(found[0][0], plain[0][0]) and torch.equal(
        found[0][1]["pooled_output"], plain[0][1]["pooled_output"]
    )
    assert learned_text(plain) is None and STATES not in plain[0][1]


def test_files_keep_it(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    learned, plain = text(), record()
    saved = replace(plain, conditioning=learned.put_on(plain.conditioning))
    assert same(learned_text(store.load(store.save(saved, "photo").name).conditioning), learned)
    assert learned_text(store.load(store.save(plain, "photo").name).conditioning) is None


def test_the_cache_tells_inversions_with_other_learned_words_apart():
    plain, names = record(), set()
    for conditioning in (plain.conditioning, text().put_on(plain.conditioning), text().put_on(plain.conditioning)):
        names.add(Digest().add(replace(plain, conditioning=conditioning)).name())
    assert len(names) == 3


def test_each_step_has_its_own_states():
    learned = text()
    ((states, options),) = learned.put_on(tiny.prompt(3))
    cond = {**options, "uuid": 7, "model_conds": {"c_crossattn": comfy.conds.CONDCrossAttn(states)}}
    other = {"model_conds": {"c_crossattn": comfy.conds.CONDCrossAttn(states)}}
    for number in range(2):
        first, second = at_step([cond, other], number)
        assert torch.equal(first["model_conds"]["c_crossattn"].cond, learned.states[number]) and first["uuid"] == 7
        assert second is other
    for wrong, number in ((cond, 2), ({**cond, STATES: learned.states[:, :, :5]}, 0)):
        with pytest.raises(ValueError, match="prompt with learned words holds 2 steps"):
            at_step([wrong], number)


def test_the_pair_of_levels_at_a_sigma():
    inversion = record()
    pairs = {2.0: 1, 1.0: 1, 0.5: 0, 0.1: 0, 0.03: 0}
    assert {sigma: inversion.pair(sigma) for sigma in pairs} == pairs
