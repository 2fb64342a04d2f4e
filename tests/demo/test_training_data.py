"""What the demo model learns from: disturbed scenes and noised latents."""

from __future__ import annotations

import pytest
import torch
from bundle import world
from scenes import captions
from scenes.disturbance import disturb
from training import training_data as data

CHANGED = ("shape", "colour", "centre", "radius")


@pytest.fixture(scope="module")
def scenes() -> world.Scenes:
    return world.sample_scenes(400, 3, empty_share=0.1)


@pytest.fixture(scope="module")
def disturbed(scenes: world.Scenes) -> world.Scenes:
    return disturb(scenes, torch.Generator().manual_seed(4))


def _differs(one: world.Scenes, two: world.Scenes, name: str) -> torch.Tensor:
    """(B, 2) of bool: in which slots an entry differs."""
    return (
        (getattr(one, name) != getattr(two, name)).flatten(2).any(2)
        if name == "centre"
        else (getattr(one, name) != getattr(two, name))
    )


def test_at_most_one_object_is_disturbed(scenes: world.Scenes, disturbed: world.Scenes) -> None:
    changed = torch.stack([_differs(scenes, disturbed, name) for name in CHANGED]).any(0)
    assert changed.sum(1).max() == 1
    assert not changed[scenes.shape == world.NOTHING].any()


def test_all_kinds_of_disturbance_occur(scenes: world.Scenes, disturbed: world.Scenes) -> None:
    missing = (scenes.shape != world.NOTHING) & (disturbed.shape == world.NOTHING)
    for kind in (missing, *(_differs(scenes, disturbed, name) for name in CHANGED)):
        assert 0.03 < kind.any(1).float().mean() < 0.6


def test_nothing_held_out_is_shown(disturbed: world.Scenes) -> None:
    assert not world.is_held_out(disturbed.shape, disturbed.colour, disturbed.background).any()


def test_the_rest_of_the_scene_stays(scenes: world.Scenes, disturbed: world.Scenes) -> None:
    for name in ("angle", "shade", "stripes", "background", "tint", "light"):
        assert torch.equal(getattr(scenes, name), getattr(disturbed, name))


@pytest.fixture(scope="module")
def pool(scenes: world.Scenes) -> data.Pool:
    """Latents that tell their scene by their value, disturbed ones by their sign too."""
    number = torch.arange(1.0, len(scenes) + 1).view(-1, 1, 1, 1).expand(-1, 4, 16, 16)
    return data.Pool(number, -number, scenes)


def test_wanted_noise_leads_to_the_scene_of_the_caption(pool: data.Pool) -> None:
    """Of a disturbed picture too: alpha * scene + sigma * wanted = noisy, with the same scene at every place."""
    batch = data.draw(pool, 64, torch.Generator().manual_seed(1), put_right=True)
    alpha = data.alphas(torch.device("cpu"))[batch.t].view(-1, 1, 1, 1)
    scene = (batch.noisy - (1 - alpha).sqrt() * batch.wanted) / alpha.sqrt()
    numbers = scene.mean((1, 2, 3))
    assert torch.allclose(scene, numbers.view(-1, 1, 1, 1).expand_as(scene), atol=0.05)
    assert torch.allclose(numbers, numbers.round(), atol=0.05)
    assert (numbers > 0.5).all()


@pytest.mark.parametrize("put_right", [False, True])
def test_disturbed_pictures_are_shown_where_layout_is_decided(pool: data.Pool, put_right: bool) -> None:
    batch = data.draw(pool, 320, torch.Generator().manual_seed(1), put_right=put_right)
    # The noise that was added has unit spread; what is wanted of a disturbed picture is far from that.
    wrong = batch.wanted.mean((1, 2, 3)).abs() > 0.5
    assert not wrong[batch.t < data.PUT_RIGHT_ABOVE].any()
    assert wrong.any() == put_right


def test_all_is_said_of_a_disturbed_scene(pool: data.Pool) -> None:
    """A picture is put right towards its caption, which therefore has to name everything."""
    batch = data.draw(pool, 320, torch.Generator().manual_seed(1), put_right=True)
    wrong = batch.wanted.mean((1, 2, 3)).abs() > 0.5
    full = set(world.full_captions(pool.scenes))
    full |= {
        " and ".join(reversed(c.split(" on ")[0].split(" and "))) + " on " + c.split(" on ")[1]
        for c in full
        if " and " in c
    }
    said = [captions.all_captions()[i] for i in batch.said.tolist()]
    assert all(text in full for text, is_wrong in zip(said, wrong.tolist(), strict=True) if is_wrong)
    assert not all(text in full for text in said)
