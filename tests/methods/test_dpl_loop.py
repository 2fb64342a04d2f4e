"""Dynamic Prompt Learning's inversion against the loop written out in float64."""

from __future__ import annotations

import dpl_runs
import pytest
import torch

KINDS = [("SD1", False), ("SD2", True), ("SDXL", False)]
NOUNS = ((2,), (5,))


def cells(mask):
    """(16,) of the 4 x 4 maps: background where any part of a cell is."""
    return torch.nn.functional.max_pool2d(mask[:, None], mask.shape[-1] // 4).flatten()


@pytest.mark.parametrize(("kind", "v"), KINDS)
def test_agrees_with_the_loop_written_out(kind, v):
    """Every loss of every pass and of every null-text update, to 1e-5 in float32."""
    case, how = dpl_runs.Case(kind, v), dpl_runs.settings()
    found = case.learn(how=how)
    with torch.inference_mode(False):
        expected = dpl_runs.plain_loop(case, NOUNS, how, cells(dpl_runs.mask()))
    assert len(expected) == len(found.learned[0]) == len(case.inversion.sigmas) - 1
    for (passes, errors, states, null), learned, step in zip(expected, found.learned[0], found.steps[0], strict=True):
        assert [list(losses.values()) for losses in learned.losses] == [pytest.approx(x, rel=1e-5) for x in passes]
        assert [*(x[0] for x in step.losses), step.final[0]] == pytest.approx(errors, rel=1e-5)
        assert float((learned.states - states).norm() / states.norm()) < 1e-4
        assert float((step.states - null).norm() / null.norm()) < 1e-3
