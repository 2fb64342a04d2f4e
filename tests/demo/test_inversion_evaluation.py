"""The evaluation of inversions and the benchmark: rows are counted, the plan is kept, files are written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bundle import load
from demo_model import random_model
from measure import benchmark_inversions, inversion_evaluation, report
from measure.methods import Setup
from PIL import Image
from safetensors.torch import save_file
from scenes import captions

STEPS = 3


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_file(random_model(captions.all_captions()), path)
    return Setup(*load.load_demo_model(path), steps=STEPS)


def test_rows_are_counted_and_ordered(setup: Setup, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["DDIM", "negative prompt", "null text"]
    with torch.inference_mode():
        rows = inversion_evaluation.evaluate(setup, 2, 2, tmp_path, names)
    found = {(row.inversion, row.guidance): row for row in rows}
    assert set(found) == {(name, g) for name in (inversion_evaluation.ROUND_TRIP, *names) for g in (1.0, 3.0, 7.5)} - {
        ("null text", 1.0)
    }
    for name in names[:2]:
        assert [found[name, g].forward for g in (1.0, 3.0, 7.5)] == [STEPS - 1] * 3
    updates = found["null text", 7.5].backward
    assert 1 * (STEPS - 1) <= updates <= 10 * (STEPS - 1)
    assert found["null text", 7.5].forward == (STEPS - 1) + 2 * (STEPS - 1) + updates
    # Guidance has no effect under negative-prompt inversion.
    errors = [found["negative prompt", g].latent_error for g in (1.0, 3.0, 7.5)]
    assert errors == pytest.approx([errors[0]] * 3, rel=1e-2)
    assert "| null text" in capsys.readouterr().out
    for name in ("inversions.png", "inversions plot.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 400


def test_every_inversion_has_a_way_to_be_made() -> None:
    assert {name for name, maker in inversion_evaluation.MAKERS.items() if maker.per_guidance} == {
        "fixed point, guided",
        "null text",
        "null text, source start",
    }


def test_a_plot_leaves_out_what_is_not_finite(tmp_path: Path) -> None:
    series = {"a": [(1.0, 20.0), (3.0, float("inf")), (7.5, 10.0)], "b": [(1.0, 15.0)]}
    report.save_plot(tmp_path / "plot.png", series, "x", "y")
    with Image.open(tmp_path / "plot.png") as picture:
        assert len(picture.convert("RGB").getcolors(100_000)) > 3


@pytest.mark.measure
def test_the_benchmark_on_a_narrow_network(tmp_path: Path) -> None:
    output = tmp_path / "table.md"
    assert benchmark_inversions.main(["--steps", "1", "--size", "64", "--width", "32", "--output", str(output)]) == 0
    table = output.read_text("utf-8").splitlines()
    cells = {row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[2:-1]] for row in table[2:]}
    assert cells["plain sampler, euler"][0] == "2" and cells["plain sampler, euler"][2] == "1.00x"
    assert cells["DDIM inversion"][0] == "1"
    assert cells["fixed point, 5 iterations"][0] == "5"
    assert cells["null text, 1 update"][0] == cells["null text, 1 update, saving memory"][0] == "3 + 1 back"
