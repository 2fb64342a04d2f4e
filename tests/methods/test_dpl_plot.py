"""The plot of Dynamic Prompt Learning's losses: its curves are what was recorded, live and at the end of the node."""

from __future__ import annotations

import comfy.utils
import dpl_runs
import folder_paths
import numpy as np
import pytest
import torch
from attention_edit.attention.methods.dpl import plot
from attention_edit.attention.methods.dpl.inversion import DynamicPromptLearning
from attention_edit.attention.methods.dpl.learn import Learned
from attention_edit.attention.methods.dpl.losses import Losses, Term
from attention_edit.inversion.plot import HEIGHT, MARGIN, WIDTH
from attention_edit.nodes.dpl import DPLNode
from attention_edit.nodes.inversion_methods import show_improved
from PIL import Image, ImageColor

NEVER = Losses(Term(1.0, 0.0, 25.0), Term(0.05, 0.0, 25.0), Term(0.05, 0.0, 50.0))


def learned(first, last, bounds):
    """A step of two passes, with values for the three losses."""
    names = tuple(plot.COLOURS)
    losses = tuple(dict(zip(names, values, strict=True)) for values in (first, last))
    return Learned({}, torch.zeros(1), losses, dict(zip(names, bounds, strict=True)), False)


def shown(picture, name, x):
    """Values of 0..1 at which a column of a plot has a loss's colour."""
    column = np.asarray(picture)[36 : HEIGHT - 31, round(x)].astype(int)
    rows = np.nonzero((column == ImageColor.getrgb(plot.COLOURS[name])).all(1))[0]
    height = HEIGHT - 32 - 36
    return [1 - row / height for row in rows]


def test_curves_are_the_losses_of_the_first_and_last_pass():
    """Straight from step to step; looked at halfway between two steps, and for the thresholds at the steps."""
    steps = [
        learned((0.9, 0.7, 0.5), (0.8, 0.6, 0.3), (0.2, 0.1, 0.05)),
        learned((0.9, 0.7, 0.5), (0.7, 0.6, 0.2), (0.2, 0.1, 0.05)),
        learned((0.9, 0.7, 0.5), (0.8, 0.6, 0.3), (0.2, 0.1, 0.05)),
    ]
    picture, left, across = plot.losses_plot(steps, 3), MARGIN, WIDTH - 16 - MARGIN
    assert picture.size == (WIDTH, HEIGHT)
    for middle in (0.25, 0.75):
        for name, first, last in (("at", 0.9, 0.75), ("dj", 0.7, 0.6), ("bg", 0.5, 0.25)):
            values = shown(picture, name, left + middle * across)
            lines = [any(value == pytest.approx(of, abs=0.012) for value in values) for of in (first, last)]
            assert all(lines) and all(min(abs(v - first), abs(v - last)) < 0.012 for v in values)
    for name, bound in (("at", 0.2), ("dj", 0.1), ("bg", 0.05)):
        found = shown(picture, name, left + 0.5 * across)
        assert any(value == pytest.approx(bound, abs=0.012) for value in found)


@pytest.fixture
def previews(monkeypatch):
    """What reaches the host's hook of progress bars: (value, total, preview)."""
    seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda *given, **_: seen.append(given[:3]))
    return seen


def test_a_run_shows_its_losses_after_every_step(previews, monkeypatch):
    monkeypatch.setattr(plot, "PERIOD", 0.0)
    case = dpl_runs.Case()
    found = case.learn(how=dpl_runs.settings(losses=NEVER))
    count = len(case.inversion.sigmas) - 1
    drawn = [(value, total, preview) for value, total, preview in previews if preview is not None]
    assert [(value, total) for value, total, _ in drawn] == [(step, count) for step in range(count)]
    for number, (_, _, (kind, picture, side)) in enumerate(drawn):
        assert (kind, side) == ("JPEG", WIDTH)
        expected = plot.losses_plot(found.learned[0][: number + 1], count)
        assert np.array_equal(np.asarray(picture), np.asarray(expected))


def test_a_fast_run_draws_twice_a_second_and_at_its_end(previews, monkeypatch):
    """Eleven steps within a second: the first, those half a second and a second later, and none between."""
    clock = iter([step / 10 + 5 for step in range(12)])
    monkeypatch.setattr(plot.time, "monotonic", lambda: next(clock))
    live, step = plot.LivePlot(12), learned((0.9, 0.7, 0.5), (0.8, 0.6, 0.3), (0.2, 0.1, 0.05))
    for _ in range(12):
        live.add(step)
    assert [value for value, _, _ in previews] == [0, 5, 10, 11]


def test_the_node_shows_the_losses_of_every_image_beside_the_errors(monkeypatch, tmp_path):
    """Its socket has the error plot alone, as before."""
    monkeypatch.setattr(folder_paths, "get_temp_directory", lambda: str(tmp_path))
    case = dpl_runs.Case(batch=2)
    method = DynamicPromptLearning(
        case.clip, case.prompt, "cat, dog", dpl_runs.settings(iterations=2, inner=0), dpl_runs.mask()
    )
    runs = []
    made = DynamicPromptLearning.improve
    monkeypatch.setattr(
        DynamicPromptLearning, "improve", lambda *given: runs.append(made(*given)) or runs[-1], raising=True
    )
    with torch.inference_mode():
        shown = show_improved(DPLNode, method, case.model, case.inversion, case.negative, 7.5, False)
    names = [tmp_path / entry["filename"] for entry in shown.ui.as_dict()["images"]]
    pictures = torch.stack([torch.from_numpy(np.array(Image.open(name).convert("RGB"))) for name in names])
    assert torch.equal((shown.args[1] * 255).byte(), pictures[:1])
    steps = dpl_runs.Images(runs[0]).learned
    assert pictures.shape == (3, HEIGHT, WIDTH, 3)
    for picture, of in zip(pictures[1:], steps, strict=True):
        assert torch.equal(picture, torch.from_numpy(np.array(plot.losses_plot(of, len(of)))))
