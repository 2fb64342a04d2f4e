"""The benchmark of mask sizes: every method is timed with every size, and the table is of ratios."""

from __future__ import annotations

import pytest
import torch
from measure import benchmark_masks

pytestmark = pytest.mark.measure


def test_every_method_with_every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_masks, "SIZES", (64, 128))
    with torch.inference_mode():
        found = benchmark_masks.measure(steps=3, turns=1)
    assert set(found) == {"CPAM", "MasaCtrl with masks", "Exact Background"}
    assert all(set(sides) == {64, 128} and min(sides.values()) > 0 for sides in found.values())
    assert "| CPAM " in benchmark_masks.table(found)
