"""The evaluation of flows' inversions: round trips are measured and counted, and a UNet is refused."""

from __future__ import annotations

import pytest
import torch
from bundle import load, transformer
from measure import flow_inversion_evaluation
from measure.flow_inversion_evaluation import OWN, WAYS
from measure.methods import Setup


def test_every_way_is_measured_and_counted() -> None:
    setup = Setup(*transformer.load_demo_transformer())
    with torch.inference_mode():
        rows = list(flow_inversion_evaluation.measure(setup, 1, (1, 2)))
    found = {(row.inversion, row.back, row.steps): row for row in rows}
    assert len(rows) == len(found) == 2 * sum(len(way.back) for way in WAYS.values())
    counts = {"Euler": 2, "Uni-Inv": 2, "RF-Solver": 4, "FireFlow": 3}
    counts |= {f"fixed point, {n} iterations": 2 * n for n in (3, 10)}
    assert {row.inversion: row.forward for row in rows if row.steps == 2} == counts
    fixed, euler = (found[name, "euler", 2].error for name in ("fixed point, 10 iterations", "Euler"))
    assert 0 < fixed < euler
    assert all(found[name, OWN, 2].error != found[name, "euler", 2].error for name in ("RF-Solver", "FireFlow"))
    cells = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in flow_inversion_evaluation.table(rows).splitlines()
    ]
    assert [(name, back) for name, back, *_ in cells[2:]] == [(name, back) for name in WAYS for back in WAYS[name].back]


def test_a_unet_is_told_which_model_to_name() -> None:
    with pytest.raises(ValueError, match=r"Add --model demo/bundle/transformer\.safetensors"):
        next(flow_inversion_evaluation.measure(Setup(*load.load_demo_model()), 2))
