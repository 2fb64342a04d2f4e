"""Demo Sketch and Demo Adapter: what they hand out is the altered scene's, and the adapter is the host's."""

from __future__ import annotations

import comfy.controlnet
import pytest
import torch
from attention_edit.nodes.demo import DemoSceneNode
from attention_edit.nodes.demo_sketch import DemoAdapterNode, DemoSketchNode
from bundle import world

KEEP = "as it is"
SIDE = world.SIZE


def test_a_scene_as_it_is_has_its_own_picture_mask_and_caption() -> None:
    image, mask, caption, _ = DemoSceneNode.execute(4, 2).args
    sketch, region, result, said = DemoSketchNode.execute(4, 2, 1, KEEP, KEEP, 0.0, 0.0).args
    assert torch.equal(result, image) and torch.equal(region, mask) and said == caption
    assert sketch.shape == (1, SIDE, SIDE, 3) and sketch.min() == 0 and sketch.max() == 1


@pytest.mark.parametrize("which", [1, 2])
def test_the_chosen_object_is_altered_and_the_other_stays(which: int) -> None:
    _, *masks = (x for i, x in enumerate(DemoSceneNode.execute(4, 2).args) if i != 2)
    _, region, _, said = DemoSketchNode.execute(4, 2, which, "cross", "yellow", 0.0, 0.0).args
    own, other = masks[which - 1], masks[2 - which]
    assert (region >= own).all() and region.sum() > own.sum() and not (region * other).any()
    assert said.split(" and ")[which - 1].startswith("a yellow cross")


def test_a_move_is_in_shares_of_the_side_and_ends_at_the_border() -> None:
    def across(right: float) -> float:
        *_, result, _ = DemoSketchNode.execute(4, 1, 1, KEEP, KEEP, right, 0.0).args
        still = DemoSceneNode.execute(4, 1).args[0]
        shown = (result - still).abs().amax(-1)[0].amax(0) > 0.2
        return float(torch.nonzero(shown).max())

    scene = world.demo_scene(4, 1)
    room = 1 - 1.1 * float(scene.radius[0, 0]) - float(scene.centre[0, 0, 0])
    assert room > 0.1
    assert abs(across(0.1) - across(0.05) - 0.05 * SIDE) <= 1
    assert across(1.0) == across(room) < SIDE


def test_a_second_object_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="Set object of Demo Sketch to 1"):
        DemoSketchNode.execute(4, 1, 2, KEEP, KEEP, 0.0, 0.0)


def test_the_adapter_is_the_host_s() -> None:
    (control,) = DemoAdapterNode.execute().args
    assert isinstance(control, comfy.controlnet.T2IAdapter)
