"""Edits of UNets as a person could build them: refused in words, or finite and with their properties."""

from __future__ import annotations

import drawing
import graphs
import properties
import pytest
import rounds

SHARES = {"rerun": 25, "empty": 25, "packed": 20, "alone": 20, "recorded": 20, "background": 25, "whole": 15}
KINDS = ("SD1",) * 4 + ("SD2",) * 4 + ("BK-SDM",) * 3 + ("KOALA", "SDXL")
"""The last two take several times as long."""


@pytest.mark.parametrize(("prop", "seed", "cases"), rounds.items(SHARES))
def test_edits(prop, seed, cases):
    seen = rounds.fuzz(graphs.edit_cases(KINDS, prop), seed, cases)
    assert seen["held"] >= seen.total() / 10, f"too few cases have been checked: {dict(seen)}"


def test_every_node_that_puts_something_on_a_model_is_drawn():
    """A new method is told to the drawing, and what makes it do nothing to the property `empty`."""
    puts = {name for name, schema in drawing.schemas().items() if schema.outputs[0].get_io_type() == "MODEL"}
    others = {"Setup", "DemoModel"}
    assert puts - others == {*drawing.METHODS, *drawing.RARE}
    assert puts - others == {*properties.METHODS_OFF, *properties.NO_WINDOW, *properties.LOOKING}
