"""MaSaFusion's algorithms against a loop written out with hooks of the host alone."""

from __future__ import annotations

import adapters
import edits
import pytest
import tiny
from attention_edit.attention.methods.masafusion import INVERTED, MIXED, MaSaFusion
from fusion_loop import REGION, WrittenOut, images

CONDITIONS = {
    "none": lambda: tiny.prompt(2),
    "t2i": lambda: adapters.with_control(tiny.prompt(2), adapters.t2i_adapter()),
    "controlnet": lambda: adapters.with_control(tiny.prompt(2), adapters.control_net()),
}


@pytest.mark.parametrize("condition", CONDITIONS)
def test_algorithm_1_written_out(model, inversion, condition):
    control = MaSaFusion(REGION, seed=4)
    expected = WrittenOut(model, inversion, control, CONDITIONS[condition]()).run()
    for packed in (False, True):
        found = images(model, inversion, control, CONDITIONS[condition](), packed=packed)
        for a, b in zip(found, expected, strict=True):
            assert edits.difference(a, b) < 1e-3, "one rounding of a guided step, times guidance and steps"


@pytest.mark.parametrize("begins", [MIXED, INVERTED])
def test_the_starts_of_figure_4(model, inversion, begins):
    control = MaSaFusion(REGION, seed=4, begins=begins)
    for a, b in zip(
        images(model, inversion, control), WrittenOut(model, inversion, control, tiny.prompt(2)).run(), strict=True
    ):
        assert edits.difference(a, b) < 1e-3


def test_algorithm_5_written_out(model, inversion):
    control = MaSaFusion(REGION, intermediate=False)
    expected, _ = WrittenOut(model, inversion, control, tiny.prompt(2)).run()
    found, image = images(model, inversion, control)
    assert edits.difference(found, expected) < 1e-3 and image is None


def test_from_one_start_the_target_is_the_intermediate_image(model, inversion):
    """x_i = x_t: the map that it is given is its own."""
    found, image = images(model, inversion, MaSaFusion(REGION, begins=MIXED))
    assert edits.difference(found, image) < 1e-3
