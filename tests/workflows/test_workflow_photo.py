"""The workflow photo-edit: an object of a larger picture is edited at the model's size, and all else stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F
from bundle import world
from made import TEXTS, Made, assert_reads, binary_messages, execute, prompt_of
from scenes import expected
from show.workflow_file import find_node

if TYPE_CHECKING:
    from machine.comfy_server import ComfyServer

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def photo(server: ComfyServer) -> Made:
    return execute(server, "photo-edit", prompt_of(server, "photo-edit"))


def _object(photo: Made) -> torch.Tensor:
    """The edited object's true mask (1, 1, H, W) at the photograph's size."""
    scenes = expected.scene_of(photo.prompt)
    assert scenes is not None
    return F.interpolate(world.masks(scenes)[:, :1], photo.images["Before"].shape[-2:], mode="nearest")


def test_the_photograph_keeps_its_size_and_the_model_has_its_own(photo: Made) -> None:
    assert photo.images["After"].shape == photo.images["Before"].shape == (1, 3, 640, 640)
    assert photo.images["Fitted"].shape == (1, 3, world.SIZE, world.SIZE)


def test_all_beyond_the_frame_is_the_photographs(photo: Made) -> None:
    """The frame is the object and, on each side, as much of its size as context says: no byte outside is another."""
    context = photo.prompt[find_node(photo.prompt, "AttnEditFitPhoto")]["inputs"]["context"]
    rows, columns = (_object(photo)[0, 0].any(dim).nonzero()[:, 0] for dim in (1, 0))
    height, width = (int(line[-1] - line[0]) + 1 for line in (rows, columns))
    # A frame of the model's square has the longer side twice; the mask's edge is soft over a pixel of the scene.
    side = max(height, width) + 2 * context * (height * width) ** 0.5 + 2 * 640 / world.SIZE
    y, x = (int(line[0] + line[-1]) / 2 for line in (rows, columns))
    changed = (photo.images["After"] != photo.images["Before"]).any(1)[0].nonzero()
    assert len(changed) > 1000
    # Where the photograph's border is in the way the frame is moved, by as much as it would have reached over it.
    for line, middle in ((changed[:, 0], y), (changed[:, 1], x)):
        moved = max(0.0, side / 2 - middle, middle + side / 2 - 640)
        assert middle - side / 2 - moved <= line.min() and line.max() <= middle + side / 2 + moved


def test_the_edit_is_in_its_place(photo: Made) -> None:
    """Read from the pixels, brought to the size of the demo world: the new object, and the other one as it was."""
    scenes = expected.scene_of(photo.prompt)
    assert scenes is not None
    other = world.caption([(int(scenes.shape[0, 1]), int(scenes.colour[0, 1]))])
    small = F.interpolate(photo.images["After"], (world.SIZE, world.SIZE), mode="area")
    assert_reads(small, f"{expected.text_of(photo.prompt)} and {other}")


def test_the_node_says_that_nothing_changed_outside(server: ComfyServer) -> None:
    server.forget()  # what the server's cache answers says nothing anew
    told = binary_messages(server, prompt_of(server, "photo-edit"), TEXTS)
    assert any(b"changed outside the mask: 0 pixels" in text for text in told)
