"""The evaluation of edits in turns: its tasks follow on one another, and what it measures is what it says."""

from __future__ import annotations

import pytest
import torch
from bundle import load, world
from measure import turns_evaluation
from measure.methods import Setup
from measure.turns_evaluation import ALONE, ANEW, NEXT, TURNS
from scenes import tasks


def test_each_turn_begins_with_the_scene_of_the_one_before() -> None:
    """One object changes its colour and nothing else, by turns; every turn's truth keeps what no turn may change."""
    found = turns_evaluation.chain(8)
    assert len(found) == TURNS
    for turn, task in enumerate(found):
        slot, before = turn % 2, found[turn - 1].edited if turn else task.scenes
        assert torch.equal(task.scenes.colour, before.colour) and torch.equal(task.edited.shape, found[0].scenes.shape)
        assert (task.edited.colour[:, slot] != before.colour[:, slot]).all()
        assert torch.equal(task.edited.colour[:, 1 - slot], before.colour[:, 1 - slot])
        assert all(tasks.show_scenes(task.edited, task.truth))
        assert not any(tasks.show_scenes(task.edited, world.render(task.scenes)))
        assert float(((task.truth - found[0].source).abs() * task.kept).max()) < 0.05
        assert torch.equal(task.source, found[0].source)


@pytest.mark.measure
def test_the_ways_are_measured_and_counted() -> None:
    setup = Setup(*load.load_demo_model(), steps=3)
    with torch.inference_mode():
        rows = turns_evaluation.measure(setup, 2, 2)
    found = {(row.way, row.turn): row for row in rows}
    exact, anew = (f"CPAM, exact background: {way}" for way in (NEXT, ANEW))
    assert len(rows) == len(found) == TURNS * 5
    for turn in range(1, TURNS + 1):
        assert found[exact, turn].latent == 0
        assert found[exact, turn].rows == (8 if turn == 1 else 6)
        assert found[anew, turn].rows == 8
    assert found[anew, TURNS].latent > found[ALONE, 1].latent == 0
    text = turns_evaluation.tables(rows)
    assert text.count(NEXT) == 4 * 2 and f"turn {TURNS}" in text
