"""The benchmark of MAG-Edit, on a narrow UNet of the same topology."""

from __future__ import annotations

from argparse import Namespace

import pytest
from measure import benchmark_mag

NARROW = Namespace(iterations=2, size=16, width=32, dtype="float32")


@pytest.fixture(scope="module")
def found():
    return {case: benchmark_mag.one_step(case, NARROW) for case in benchmark_mag.CASES}


def test_an_iteration_costs_less_than_half_of_the_published_recipe(found):
    """Source and edit go through the whole UNet there, and half of one here; the way back is the same."""
    base = found["unguided"]["operations"]
    ours, whole, again = (found[c]["operations"] - base for c in ("MAG-Edit", "published", "MAG-Edit, checkpointed"))
    assert 0 < ours < 0.5 * whole
    assert ours < again < 1.6 * ours
    whole = benchmark_mag.whole_edit(found, NARROW.iterations)
    assert whole[0] < 0.5 * whole[1]


def test_the_table_names_every_case(found):
    text = benchmark_mag.table(found, 2)
    assert all(f"| {case} " in text for case in benchmark_mag.CASES)
