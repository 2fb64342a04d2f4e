"""The demo transformer: trained by a few steps, written, loaded as the host's own model, sampled by the host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.model_sampling
import comfy.ops
import comfy.sample
import pytest
import torch
from bundle import load, transformer, world
from bundle.load import DemoModelError
from comfy.ldm.flux.model import Flux
from measure import evaluation
from safetensors.torch import load_file, save_file
from torch import Tensor
from training import flow, network, transformer_training
from training import training_data as data

CPU = torch.device("cpu")
TINY = ["--scenes", "4", "--batch", "2", "--width", "32", "--blocks", "1", "1", "--compile-within", "0"]
TINY += ["--warm-up", "1", "--average", "0.5"]


@pytest.fixture(scope="module")
def network_of_chance() -> Flux:
    """A small transformer with random weights, none of them zero."""
    rng = torch.Generator().manual_seed(0)
    model = flow.new_transformer(transformer.transformer_config(32, 2, 2), CPU)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=rng) * (0.3 if weight.ndim == 1 else 0.2))
    return model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("transformer") / "transformer.safetensors"
    assert transformer_training.main([*TINY, "--minutes", "10", "--steps", "9", "--output", str(path)]) == 0
    return path


def _given() -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    x, context = torch.randn(2, 4, 6, 5, generator=rng), torch.randn(2, 7, load.CONTEXT, generator=rng)
    return x, torch.tensor([0.2, 0.9]), context


@torch.no_grad()
def test_training_computes_what_the_host_computes(network_of_chance: Flux) -> None:
    config = transformer.transformer_config(32, 2, 2)
    of_host: Any = Flux(**config, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init)
    of_host.load_state_dict(network_of_chance.state_dict())
    x, sigma, context = _given()
    wanted = of_host(x, sigma, context)
    assert torch.allclose(flow.Velocity(network_of_chance, False)(x, sigma, context), wanted, atol=1e-4, rtol=1e-4)
    assert wanted.std() > 0.1


def test_gradients_are_those_of_finite_differences(network_of_chance: Flux) -> None:
    velocity, (x, sigma, context) = flow.Velocity(network_of_chance, False), _given()
    weights = list(network_of_chance.parameters())

    def loss() -> Tensor:
        return velocity(x, sigma, context).square().mean()

    gradients = torch.autograd.grad(loss(), weights)
    length = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
    step = 1e-3
    ends = []
    with torch.no_grad():
        for sign in (1, -2):
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.add_(gradient, alpha=sign * step / length.item())
            ends.append(loss())
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.add_(gradient, alpha=step / length.item())
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(length.item(), rel=0.02)


@pytest.fixture(scope="module")
def pool() -> data.Pool:
    """Latents that tell their scene by their value, disturbed ones by their sign too."""
    number = torch.arange(1.0, 401).view(-1, 1, 1, 1).expand(-1, 4, 16, 16)
    return data.Pool(number, -number, world.sample_scenes(400, 3))


@pytest.mark.parametrize("put_right", [False, True])
def test_velocity_leads_to_the_scene_of_the_caption(pool: data.Pool, put_right: bool) -> None:
    """In the host's terms: what is left when sigma times the velocity is taken from the noisy latent."""
    rng = torch.Generator().manual_seed(1)
    for batch in flow.draw_batches(pool, 64, 2, rng, put_right):
        sigma = batch.t.view(-1, 1, 1, 1)
        scene = comfy.model_sampling.CONST().calculate_denoised(batch.t, batch.wanted, batch.noisy)
        numbers = scene.mean((1, 2, 3))
        assert torch.allclose(scene, numbers.view(-1, 1, 1, 1).expand_as(scene), atol=0.05)
        assert (numbers > 0.5).all()
        shown = (batch.noisy.mean((1, 2, 3), keepdim=True) < -1).flatten()
        assert shown.any() == put_right
        assert (batch.t[shown] > flow.PUT_RIGHT_ABOVE_SIGMA).all()
        assert ((sigma > 0) & (sigma <= 1)).all()


def test_half_of_the_levels_lie_where_half_of_a_run_does() -> None:
    levels = flow.noise_levels(10_000, torch.Generator().manual_seed(2), CPU)
    sampling = transformer.DemoTransformer(transformer.transformer_config()).get_model({}).model_sampling
    bell = (1 - flow.EVEN) * 0.5
    even = flow.EVEN * (1 - sampling.percent_to_sigma(0.5))
    assert (levels > sampling.percent_to_sigma(0.5)).float().mean() == pytest.approx(bell + even, abs=0.02)
    assert sampling.sigma_max == 1


def test_the_host_gets_the_file_s_weights(trained: Path) -> None:
    model, clip, vae = transformer.load_demo_file(trained)
    assert isinstance(model.model, comfy.model_base.Flux)
    loaded = model.model.diffusion_model.state_dict()
    tensors = load_file(trained)
    assert {f"{transformer.PREFIX}{name}" for name in loaded} == set(tensors)
    for name, tensor in loaded.items():
        assert torch.equal(tensor.half().cpu(), tensors[f"{transformer.PREFIX}{name}"]), name
    assert clip.tokenize("a red circle")
    assert vae.decode(torch.zeros(1, 4, 16, 16)).isfinite().all()


def test_training_changes_every_weight(trained: Path) -> None:
    start = flow.new_transformer(transformer.transformer_config(32, 1, 1), CPU)
    network.initialise(start, torch.Generator().manual_seed(transformer_training.SEED))
    tensors = load_file(trained)
    for name, weight in start.named_parameters():
        assert not torch.equal(tensors[f"{transformer.PREFIX}{name}"], weight.detach().half()), name


@torch.inference_mode()
def test_sampling_as_a_workflow_does(trained: Path) -> None:
    model, clip, _ = transformer.load_demo_file(trained)
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("a red circle", ""))
    latent = torch.zeros(2, 4, 16, 16)
    noise = comfy.sample.prepare_noise(latent, 3)
    result = comfy.sample.sample(
        model, noise, 3, 4.0, "euler", "normal", positive, negative, latent, disable_pbar=True, seed=3
    )
    assert result.shape == latent.shape
    assert result.isfinite().all()


def test_states_are_those_that_the_host_gives(trained: Path) -> None:
    _, clip, _ = transformer.load_demo_file(trained)
    text = network.new_text_model()
    text.load_state_dict({k: v.float() for k, v in load.read_parts()["text"].items()})
    said = ["", "a red circle", "a blue square and a star on a pink background"]
    states = transformer_training.text_states(text, said, CPU)
    for state, words in zip(states, said, strict=True):
        by_host = clip.encode_from_tokens_scheduled(clip.tokenize(words))[0][0][0]
        assert torch.allclose(state.float(), by_host.cpu(), atol=5e-3), words


def test_the_evaluation_judges_it(trained: Path, tmp_path: Path) -> None:
    arguments = ["--model-bar", "--model", str(trained), "--output", str(tmp_path), "--steps", "2"]
    assert evaluation.main([*arguments, "--count", "2", "--prompts", "2", "--guidance", "2"]) == 1
    assert (tmp_path / "results.json").is_file()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: {k: v for k, v in t.items() if "img_in" not in k}, "img_in"),
        (lambda t: t | {"transformer.time_in.in_layer.bias": torch.zeros(3)}, "size"),
        (lambda t: t | {"transformer.x": torch.zeros(3)}, "unknown"),
    ],
)
def test_a_foreign_file(trained: Path, tmp_path: Path, change: Any, words: str) -> None:
    other = tmp_path / "other.safetensors"
    save_file(change(load_file(trained)), other)
    with pytest.raises(DemoModelError, match="not the demo model") as error:
        transformer.load_demo_transformer(other)
    assert words in str(error.value)


def test_it_is_small() -> None:
    """It is downloaded with the pack: 10 MB in half precision."""
    model = flow.new_transformer(transformer.transformer_config(), torch.device("meta"))
    assert sum(weight.numel() for weight in model.parameters()) * 2 < 10e6


def test_compiling_is_given_up_in_time() -> None:
    with pytest.raises(TimeoutError), transformer_training.at_most(1):
        while True:
            pass
