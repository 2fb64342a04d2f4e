"""The benchmark of a second edit measures what it says."""

from __future__ import annotations

import pytest
from measure import benchmark_second


@pytest.mark.measure
def test_a_second_edit_calls_the_network_with_as_many_rows_as_plain_sampling():
    found = benchmark_second.measure(full=False, steps=3, turns=1)
    for ways in found.values():
        plain, off, first, second = (ways[way][1] for way in benchmark_second.WAYS)
        assert second == plain < first == off
    assert "| CPAM " in benchmark_second.table(found)
