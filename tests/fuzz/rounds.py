"""Rounds of fuzzing: so many cases from one seed each, as items of pytest that several processes share.

`python tests --fuzz 5000` sets the variables that are read here; without them it is what CI runs, from fixed seeds.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import properties
from cases import Case
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

ALL_CASES, FIRST_SEED = "ATTENTION_EDIT_FUZZ", "ATTENTION_EDIT_FUZZ_SEED"
"""Variables: number of cases in all, and the seed of the first round."""
ON_CI = 300
LARGEST = 100
"""Most cases of a round; many, so that what a test says of their share is not a matter of a lucky seed."""


def rounds(share: int) -> Iterator[tuple[int, int]]:
    """Seed and number of cases of each round of one property; `share`: its cases of ON_CI."""
    wanted, first = int(os.environ.get(ALL_CASES, ON_CI)), int(os.environ.get(FIRST_SEED, 0))
    left = max(1, share * wanted // ON_CI)
    while left > 0:
        yield first, min(left, LARGEST)
        left -= LARGEST
        first += 1


def fuzz(strategy: SearchStrategy[Case], number: int, cases: int) -> Counter[str]:
    """Check cases of a strategy; returns how many were refused, ran, and had their property checked too.

    Raises:
        AssertionError, or what a node raised: the smallest failing case is printed.
    """
    seen: Counter[str] = Counter()

    @seed(number)
    @settings(
        max_examples=cases,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(strategy)
    def one(case: Case) -> None:
        seen[properties.check(case)] += 1

    one()
    return seen


def items(shares: dict[str, int]) -> list[Any]:
    """Property, seed and number of cases of each item of pytest."""
    return [(name, *found) for name, share in shares.items() for found in rounds(share)]
