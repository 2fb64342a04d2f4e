"""The demo adapter: the host's own objects, features that fit the demo model's UNet, and drawings that follow it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.controlnet
import comfy.t2i_adapter.adapter
import pytest
import torch
from bundle import adapter, load, world
from bundle.load import DemoModelError
from bundle.sketch import outlines
from measure import masafusion_evaluation
from measure.methods import Setup
from safetensors.torch import save_file

LEVELS = (2, 5, 8, 11)
"""The last input block of each level of the UNet, after which SD1.x's T2I-Adapters add their features."""


@pytest.fixture(scope="module")
def control() -> comfy.controlnet.T2IAdapter:
    return adapter.load_demo_adapter()


@pytest.fixture(scope="module")
def setup() -> Setup:
    return Setup(*load.load_demo_model(), steps=6)


def _loaded_by_the_host() -> comfy.controlnet.T2IAdapter:
    """What the host's loader makes of a sketch adapter in SD1.x's widths, here a twentieth of them."""
    widths = [16, 32, 64, 64]
    network = comfy.t2i_adapter.adapter.Adapter(widths, 2, 64, 1, sk=True, use_conv=False, xl=False)
    return comfy.controlnet.load_controlnet_state_dict(network.state_dict())


def test_is_what_the_host_s_loader_makes(control: comfy.controlnet.T2IAdapter) -> None:
    """But for the widths: the same classes and numbers, so that all that holds of it holds of real adapters."""
    by_host = _loaded_by_the_host()
    assert type(control) is type(by_host)
    for name in ("channels_in", "compression_ratio", "upscale_algorithm"):
        assert getattr(control, name) == getattr(by_host, name), name
    ours, theirs = control.t2i_model, by_host.t2i_model
    assert type(ours) is type(theirs)
    for name in ("unshuffle_amount", "input_channels", "nums_rb", "xl"):
        assert getattr(ours, name) == getattr(theirs, name), name
    sizes = [[tuple(block.block2.kernel_size) for block in network.body] for network in (ours, theirs)]
    assert sizes[0] == sizes[1]


def test_the_file_is_small_and_in_half_precision() -> None:
    tensors = load.read_tensors(adapter.ADAPTER_FILE)
    assert adapter.ADAPTER_FILE.stat().st_size < 1_500_000
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert all(tensor.isfinite().all() for tensor in tensors.values())


@torch.inference_mode()
def test_features_have_the_sizes_of_the_unet_s_levels(control: comfy.controlnet.T2IAdapter, setup: Setup) -> None:
    seen: dict[int, torch.Size] = {}

    def look(h: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        seen[options["block"][1]] = h.shape[1:]
        return h

    model = setup.model.clone()
    model.set_model_input_block_patch(look)
    masafusion_evaluation.generate(Setup(model, setup.clip, setup.vae, steps=1), [""], world.SIZE)
    features = control.t2i_model(torch.zeros(1, 1, world.SIZE, world.SIZE))["input"][::-1]
    places = [index for index, feature in enumerate(features) if feature is not None]
    assert tuple(places) == LEVELS
    assert [features[place].shape[1:] for place in places] == [seen[place] for place in places]


@torch.inference_mode()
def test_drawings_follow_the_outlines(control: comfy.controlnet.T2IAdapter, setup: Setup) -> None:
    """With a caption that says nothing of place, what is drawn lies inside of the outlines, and without them it may
    lie anywhere."""
    scenes = world.sample_scenes(2, 41, objects=1)
    followed = masafusion_evaluation.measure_following(setup, control, scenes)
    found = {(row.said, row.sketch): row.overlap for row in followed}
    for said in ("nothing", "all"):
        assert found[said, True] > found[said, False], said


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    tensors = load.read_tensors(adapter.ADAPTER_FILE)
    name = next(iter(tensors))
    cases = {"has the size": {**tensors, name: torch.zeros(3, 3)}, "1 tensors are missing": dict(tensors)}
    del cases["1 tensors are missing"][name]
    for words, changed in cases.items():
        save_file(changed, tmp_path / "other.safetensors")
        with pytest.raises(DemoModelError, match=words):
            adapter.load_demo_adapter(tmp_path / "other.safetensors")
    with pytest.raises(DemoModelError, match="missing"):
        adapter.load_demo_adapter(tmp_path / "none.safetensors")


def test_outlines_are_where_objects_end() -> None:
    scenes = world.sample_scenes(6, 3)
    lines, masks = outlines(scenes, 2.0)[:, 0], world.masks(scenes).amax(1)
    across = masks[..., 1:] != masks[..., :-1]
    assert (torch.maximum(lines[..., 1:], lines[..., :-1])[across] > 0.5).all()
    away = world.distances(scenes).abs().amin(1) > 1.5
    assert not lines[away].any() and lines.max() == 1


def test_each_scene_may_have_lines_of_its_own_width() -> None:
    scenes = world.sample_scenes(2, 3, objects=1)
    both = outlines(scenes, torch.tensor([1.0, 4.0]))
    assert torch.equal(both[:1], outlines(scenes[:1], 1.0)) and torch.equal(both[1:], outlines(scenes[1:], 4.0))
