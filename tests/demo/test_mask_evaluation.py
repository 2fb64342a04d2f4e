"""What faults of a mask cost: the faults are what they say, and the evaluation runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from demo_model import random_model
from measure import evaluation, mask_evaluation
from measure.mask_evaluation import FAULTS, boxes, shifted, too_large
from safetensors.torch import save_file
from scenes import captions, metrics, tasks


def square(top: int = 40, left: int = 50, side: int = 20) -> torch.Tensor:
    mask = torch.zeros(1, 1, 128, 128)
    mask[..., top : top + side, left : left + side] = 1
    return mask


def test_faults_are_what_they_say() -> None:
    """30 % more on a side, a fifth of a side off, and the rectangle around."""
    assert torch.equal(too_large(square()), square(37, 47, 26))
    assert torch.equal(shifted(square()), square(44, 54))
    assert int(shifted(square(110, 110, 18)).sum()) == 14 * 14  # what leaves the image is lost
    cross = torch.maximum(square(40, 50, 20) * 0, square(45, 55, 4))
    cross[..., 47, 40:80] = 1
    expected = torch.zeros_like(cross)
    expected[..., 45:49, 40:80] = 1
    assert torch.equal(boxes(cross), expected)


def test_faults_of_a_batch_are_those_of_each() -> None:
    both = torch.cat([square(), square(10, 10, 40)])
    for fault in FAULTS.values():
        assert torch.equal(fault(both), torch.cat([fault(both[:1]), fault(both[1:])]))


def test_the_background_begins_at_the_object() -> None:
    """Closer than in the tables of edits, so that what a mask is too large by is seen; nothing there may change."""
    task, usual = mask_evaluation.make_task("recolour", 4), tasks.make_task("recolour", 4)
    ring = too_large(task.mask) * (1 - metrics.dilate(task.mask, mask_evaluation.MARGIN))
    assert (ring * task.kept).sum() > 0.5 * ring.sum() and (ring * usual.kept).sum() == 0
    assert ((task.truth - task.source).abs() * task.kept).max() < 0.01


def test_costs_gather_what_was_made_of_a_mask() -> None:
    task = tasks.make_task("recolour", 2)
    results = {}
    for number, name in enumerate(FAULTS):
        results |= {
            f"{name}, as given": (number / 10, 20.0),
            f"{name}, refined": (number / 10 + 0.05, 30.0),
            f"{name}, refined, near": (number / 10 + 0.06, 31.0),
            f"{name}, refined, inside": (number / 10 + 0.07, 32.0),
        }
    found = mask_evaluation.costs(task, results)
    assert [cost.mask for cost in found] == list(FAULTS)
    assert found[0].overlap == 1 and all(0 < cost.overlap < 1 for cost in found[1:])
    assert list(found[2].success.values()) == pytest.approx([0.2, 0.25, 0.26, 0.27])
    assert list(found[2].background_psnr.values()) == [20.0, 30.0, 31.0, 32.0]
    worst = metrics.overlap(shifted(task.mask), task.mask).mean()
    assert found[2].overlap == pytest.approx(float(worst))
    table = mask_evaluation.table(found)
    assert table.count("\n") == 2 + len(FAULTS) and "25.0 %" in table and "30.0 dB" in table


@pytest.mark.measure
def test_runs(tmp_path: Path) -> None:
    """Every fault and every way to refine, with the evaluations that were planned."""
    file = tmp_path / "model.safetensors"
    save_file(random_model(captions.all_captions()), file)
    arguments = ["--masks", "--model", str(file), "--output", str(tmp_path), "--steps", "3", "--count", "2"]
    assert evaluation.main([*arguments, "--tasks", "recolour"]) == 0
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert [cost["mask"] for cost in results["masks"]] == list(FAULTS)
    assert (tmp_path / "masks recolour.png").is_file()
    assert "edits" not in results and "model" not in results
