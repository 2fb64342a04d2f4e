"""Inversions, masks and pictures of UNets, and edits of transformers: refused in words, or finite and right."""

from __future__ import annotations

import graphs
import pytest
import rounds
import worlds

INVERSIONS = {"rerun": 25, "saved": 25, "pixels": 20}
UNETS = ("SD1",) * 4 + ("SD2",) * 4 + ("BK-SDM",) * 3 + ("KOALA", "SDXL")
TRANSFORMERS = {"rerun": 20, "empty": 20, "packed": 10, "alone": 10, "background": 20}


@pytest.mark.parametrize(("prop", "seed", "cases"), rounds.items(INVERSIONS))
def test_inversions(prop, seed, cases):
    seen = rounds.fuzz(graphs.inversion_cases(UNETS, prop), seed, cases)
    assert seen["held"] >= seen.total() / 10, f"too few cases have been checked: {dict(seen)}"


@pytest.mark.parametrize(("prop", "seed", "cases"), rounds.items(TRANSFORMERS))
def test_transformers(prop, seed, cases):
    seen = rounds.fuzz(graphs.edit_cases(worlds.JOINT, prop), seed, cases)
    assert seen["held"] + seen["ran"] > 0, f"no case has run: {dict(seen)}"
