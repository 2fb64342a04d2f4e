"""Training the demo adapter: the demo model's own loss, of which the adapter alone learns, and a file that loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bundle import adapter, load, world
from training import adapter_training, network
from training import training_data as data


@pytest.fixture(scope="module")
def pool() -> data.Pool:
    rng = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 40, 4, 16, 16, generator=rng)
    return data.Pool(latents[0], latents[1], world.sample_scenes(40, 5))


def _unet() -> torch.nn.Module:
    unet = network.new_unet()
    unet.load_state_dict({k: v.float() for k, v in load.read_parts()["unet"].items()})
    return unet.requires_grad_(False)


def test_most_levels_are_of_high_noise(pool: data.Pool) -> None:
    """t = 1000 (1 - u^3): t is 500 or more where u is at most 0.5^(1/3)."""
    rng = torch.Generator().manual_seed(2)
    high = (data.draw(pool, 400, rng, put_right=False, cubic=True).t >= 500).float().mean()
    assert abs(float(high) - 0.5 ** (1 / 3)) < 2 / 400
    even = (data.draw(pool, 400, rng, put_right=False).t >= 500).float().mean()
    assert abs(float(even) - 0.5) < 2 / 400


def test_a_batch_says_which_scenes_it_shows(pool: data.Pool) -> None:
    batch = data.draw(pool, 30, torch.Generator().manual_seed(3), put_right=False)
    alpha = data.alphas(torch.device("cpu"))[batch.t].view(-1, 1, 1, 1)
    clean = (batch.noisy - (1 - alpha).sqrt() * batch.wanted) / alpha.sqrt()
    near = batch.t < 500  # elsewhere what is left of a scene is lost in rounding
    assert torch.allclose(clean[near], pool.latents[batch.chosen][near], atol=1e-3)
    assert torch.equal(pool.chosen(batch.chosen).centre, pool.scenes.centre[batch.chosen])


def test_without_features_it_is_the_demo_model_s_loss(pool: data.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_training, "UNSAID_SHARE", 0.0)
    unet, silent = _unet(), adapter.new_adapter()
    for weight in silent.parameters():
        weight.data.zero_()
    states = torch.randn(4000, 77, load.CONTEXT, generator=torch.Generator().manual_seed(4))
    batch = data.draw(pool, 4, torch.Generator().manual_seed(5), put_right=True)
    with torch.no_grad():
        found = adapter_training.adapter_loss(unet, silent, pool, states, batch)
        predicted = unet(batch.noisy, batch.t.float(), context=states[batch.said])
    error = (predicted - batch.wanted).square().mean((1, 2, 3))
    assert torch.allclose(found, (error * batch.weight).mean(), rtol=1e-4)


def test_the_adapter_alone_learns(pool: data.Pool) -> None:
    unet, network_of = _unet(), adapter.new_adapter()
    states = torch.zeros(4000, 77, load.CONTEXT)
    batch = data.draw(pool, 2, torch.Generator().manual_seed(5), put_right=True)
    adapter_training.adapter_loss(unet, network_of, pool, states, batch).backward()
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in network_of.parameters())
    assert all(weight.grad is None for weight in unet.parameters())


@pytest.mark.measure
def test_trains_to_a_file_that_loads(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    given = ["--minutes", "5", "--steps", "3", "--batch", "2", "--scenes", "4", "--output", str(path)]
    assert adapter_training.main(given) == 0
    assert {t.dtype for t in load.read_tensors(path).values()} == {torch.float16}
    adapter.load_demo_adapter(path)
