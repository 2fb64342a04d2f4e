"""Prompt-to-Prompt's token maps: word swap, refinement and re-weighting as pure functions on prompts."""

from __future__ import annotations

import pytest
import torch
from attention_edit.attention.methods.p2p import P2P
from attention_edit.attention.words.alignment import (
    CHUNK,
    TokenMap,
    align,
    align_refined,
    align_swapped,
    factors,
    find_word,
    live_positions,
)
from prompts import prompt

CAT, DOG = prompt("a cat on a mat"), prompt("a dog on a mat")
LONG = "pelargonium"
"""One word of several tokens."""


def origins(mapping: TokenMap) -> list[int | None]:
    """For each target token the one source token that it copies, None where it keeps its own map."""
    assert set(mapping.transfer.unique().tolist()) <= {0.0, 1.0}
    return [int(c.argmax()) if c.any() else None for c in mapping.transfer.T]


def test_the_long_word_is_long():
    assert len(prompt(LONG).content) > 1


@pytest.mark.parametrize("rule", [align_swapped, align_refined])
@pytest.mark.parametrize("text", ["", "a cat", "a (red:1.3) cat, sitting", "a " * 120 + "cat"])
def test_identical_prompts_change_nothing(rule, text):
    mapping = rule(prompt(text), prompt(text))
    length = prompt(text).length
    assert torch.equal(mapping.transfer, torch.eye(length)) and not mapping.keep.any()
    maps = torch.rand(3, length)
    assert torch.equal(mapping.apply(maps, torch.rand(3, length)), maps)


def test_align_by_hand():
    assert align([1, 2, 3], [1, 2, 3]) == [0, 1, 2]
    assert align([1, 3], [1, 2, 3]) == [0, None, 1]
    assert align([1, 2, 3], [1, 3]) == [0, 2]
    assert align([1, 2], [3, 4]) == [None, None]
    assert align([], [1]) == [None] and align([1], []) == []


def test_ties_are_broken_as_released():
    """Insertions first: of two equal tokens in the target the first one is the old one."""
    assert align([5], [5, 5]) == [0, None]
    assert align([5, 5], [5]) == [0]
    # A mismatch is never aligned: with gaps for nothing, two gaps cost less.
    assert align([1, 2, 3], [1, 9, 3]) == [0, None, 2]


def test_swap_of_words_of_one_token():
    mapping = align_swapped(CAT, DOG)
    assert origins(mapping) == list(range(77))


def test_swap_shares_a_word_out():
    """One token to n: each gets 1 / n. Everything behind moves along, and what leaves the text is lost."""
    target = prompt(f"a {LONG} on a mat")
    (old,), new = CAT.find("cat"), target.find(LONG)
    mapping, n = align_swapped(CAT, target), len(target.find(LONG))
    assert torch.allclose(mapping.transfer[old, list(new)], torch.full((n,), 1 / n))
    for word in ("on", "mat"):
        assert mapping.transfer[CAT.find(word)[0], target.find(word)[0]] == 1
    sums = mapping.transfer.sum(1)
    kept = 77 - (n - 1)
    assert torch.allclose(sums[:kept], torch.ones(kept)) and not sums[kept:].any()


def test_swap_gathers_a_word():
    """n tokens to one: it gets the map of them all."""
    source = prompt(f"a {LONG} on a mat")
    mapping = align_swapped(source, CAT)
    old, (new,) = source.find(LONG), CAT.find("cat")
    assert torch.equal(mapping.transfer[list(old), new], torch.ones(len(old)))
    assert torch.equal(mapping.transfer.sum(1), torch.ones(77))


def test_compat_is_off_behind_words_of_other_length():
    target = prompt(f"a {LONG} on a mat")
    released, right = align_swapped(CAT, target, compat=True), align_swapped(CAT, target)
    mat_before, mat_after = CAT.find("mat")[0], target.find("mat")[0]
    assert released.transfer[mat_before, mat_after] == 0 and released.transfer[mat_after, mat_after] == 1
    assert right.transfer[mat_before, mat_after] == 1
    # It leaves a zero last column when the source's word is longer, and is right when no length differs.
    assert torch.equal(align_swapped(CAT, DOG, compat=True).transfer, align_swapped(CAT, DOG).transfer)


def test_swap_between_changed_words_is_right_in_both():
    source, target = prompt("a cat and a bird"), prompt(f"a {LONG} and a fish")
    for compat in (False, True):
        mapping = align_swapped(source, target, compat)
        assert mapping.transfer[source.find("and")[0], target.find("and")[0]] == 1
        assert mapping.transfer[source.find("bird")[0], target.find("fish")[0]] == 1


def test_swap_keeps_the_sum_of_a_map():
    mapping = align_swapped(CAT, DOG)
    maps = torch.rand(2, 8, 16, 77).softmax(-1)
    assert torch.allclose(mapping.apply(maps, torch.rand(2, 8, 16, 77)).sum(-1), torch.ones(2, 8, 16))


@pytest.mark.parametrize(
    "old, new, word, into",
    [
        ("a well-known cat", "a famous cat", "well-known", "famous"),
        ("the dog's house", "the old house", "dog's", "old"),
        ("a cat, sitting", "a tiger sitting", "cat,", "tiger"),
        ("a (red:1.2) cat, sitting", "a blue (cat:1.1) sitting", "cat,", "cat"),
        ("a famous cat", "a well-known cat", "famous", "well-known"),
    ],
)
@pytest.mark.parametrize("compat", [False, True])
def test_words_are_what_stands_between_spaces(old, new, word, into, compat):
    """As in the released code, signs at a word are part of it: all its tokens give to all of the new one's."""
    source, target = prompt(old), prompt(new)
    before, after = source.find(word), target.find(into)
    mapping = P2P(source, target, compat=compat).mapping
    assert len(before) != len(after) and not mapping.keep.any()
    assert torch.allclose(mapping.transfer[list(before)][:, list(after)], torch.tensor(1 / len(after)))
    if not compat:
        assert mapping.transfer[source.content[-1], target.content[-1]] == 1
    assert torch.equal(mapping.transfer, P2P(source, target, "swap words", compat=compat).mapping.transfer)


def test_a_sign_that_both_words_have_stays_its_own():
    """A new word of another length does not take the comma's map."""
    source, target = prompt("a cat, sitting"), prompt(f"a {LONG}, sitting")
    mapping = align_swapped(source, target)
    assert mapping.transfer[source.find(",")[0], target.find(",")[0]] == 1
    assert not mapping.transfer[source.find(",")[0], list(target.find(LONG))].any()


def test_a_sign_on_its_own_is_a_word():
    assert [len(word) for word in prompt("a cat , sitting-room (2024)").spaced] == [1, 1, 1, 3, 1]
    with pytest.raises(ValueError, match=r"3 \(a cat, sitting\) and the target 4 \(a cat , sitting\)"):
        align_swapped(prompt("a cat, sitting"), prompt("a cat , sitting"))


def test_swap_needs_as_many_words():
    with pytest.raises(ValueError, match=r"5 .*a cat on a mat.* 6 .*Choose refine"):
        align_swapped(CAT, prompt("a black cat on a mat"))


def test_refinement_keeps_new_words_own_maps():
    target = prompt("a black cat on a mat")
    mapping = align_refined(CAT, target)
    found = origins(mapping)
    black = target.find("black")[0]
    assert found[black] is None and mapping.keep[black] == 1 and int(mapping.keep.sum()) == 1
    for word in ("cat", "on", "mat"):
        assert found[target.find(word)[0]] == CAT.find(word)[0]
    end = live_positions(target)[-1]
    assert found[end] == live_positions(CAT)[-1]
    assert found[end + 1 :] == list(range(end + 1, 77))


def test_refinement_takes_words_away():
    source = prompt("a black cat on a mat")
    found = origins(align_refined(source, CAT))
    assert found[CAT.find("cat")[0]] == source.find("cat")[0]


def test_parts_beyond_77_tokens():
    words = " ".join(f"{w} thing" for w in ("red", "green", "blue") * 20)
    source, target = prompt(words), prompt(words.replace("blue thing", "blue glass"))
    assert source.length == target.length == 2 * CHUNK
    assert origins(align_swapped(source, target)) == list(range(2 * CHUNK))
    longer = prompt("black " + words)
    found = origins(align_refined(source, longer))
    assert found[longer.find("black")[0]] is None
    assert found[longer.content[-1]] == source.content[-1]
    short = align_refined(CAT, source)
    assert short.transfer.shape == (77, 154) and torch.equal(short.transfer.sum(0) + short.keep, torch.ones(154))


def test_weights_belong_to_words():
    """(cat:1.4) is one word and takes the map of cat."""
    target = prompt("a (dog:1.4) on a mat")
    assert origins(align_swapped(CAT, target)) == list(range(77))


def test_factors():
    target = prompt("a cat and a cat, very red")
    made = factors(target, [("cat#2", 2.0), ("very red", -1.5)])
    first, second = target.occurrences("cat")
    assert made[first[0]] == 1 and made[second[0]] == 2
    assert (made[list(target.find("very red"))] == -1.5).all()
    assert torch.equal(factors(target, []), torch.ones(77))
    assert find_word(target, "cat") == (*first, *second)
    with pytest.raises(ValueError, match="'dog' is not in the prompt"):
        factors(target, [("dog", 2.0)])


def test_gate_and_scale():
    mapping = align_refined(CAT, prompt("a black cat on a mat")).scaled(torch.full((77,), 2.0))
    source, target = torch.rand(4, 77), torch.rand(4, 77)
    assert torch.equal(mapping.gated(torch.zeros(77)).apply(source, target), target)
    assert torch.equal(mapping.gated(torch.ones(77)).apply(source, target), mapping.apply(source, target))
    gate = torch.zeros(77)
    gate[3] = 1
    mixed = mapping.gated(gate).apply(source, target)
    assert torch.allclose(mixed[:, 3], mapping.apply(source, target)[:, 3])
    assert torch.equal(mixed[:, 4:], target[:, 4:])
