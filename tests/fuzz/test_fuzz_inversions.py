"""Inversions, masks and pictures of UNets, and edits of transformers: refused in words, or finite and right."""

from __future__ import annotations

import graphs
import pytest
import rounds
import worlds

INVERSIONS = {"rerun": 25, "saved": 25, "pixels": 20}
TRANSFORMERS = {"rerun": 15, "empty": 15, "packed": 10, "alone": 10, "background": 15, "whole": 15}


@pytest.mark.parametrize(("prop", "seed", "cases"), rounds.items(INVERSIONS))
def test_inversions(prop, seed, cases):
    seen = rounds.fuzz(graphs.inversion_cases(("SD1", "SD1", "SD2", "BK-SDM", "SDXL"), prop), seed, cases)
    assert seen["held"] >= seen.total() / 10, f"too few cases have been checked: {dict(seen)}"


@pytest.mark.parametrize(("prop", "seed", "cases"), rounds.items(TRANSFORMERS))
def test_transformers(prop, seed, cases):
    seen = rounds.fuzz(graphs.edit_cases(worlds.JOINT, prop), seed, cases)
    assert seen["held"] + seen["ran"] > 0, f"no case has run: {dict(seen)}"
