"""The demo model's file becomes real host objects, and a wrong file is refused in clear words."""

from __future__ import annotations

import importlib
from pathlib import Path

import comfy.memory_management
import comfy.model_patcher
import comfy.sample
import comfy.sd
import pytest
import torch
from bundle import load
from bundle.load import DemoModelError
from demo_model import random_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from training import network

WORDS = ["a red circle on a gray background", ""]


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    """The tensors of a demo model with random weights."""
    return random_model(WORDS)


@pytest.fixture(scope="module")
def file(tensors: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("dynamic", [False, True])
def test_host_objects_hold_the_file_s_weights(
    dynamic: bool, file: Path, tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the host's layers have no tensors before they are loaded, as on NVIDIA cards."""
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", dynamic)
    model, clip, vae = load.load_demo_model(file)
    assert isinstance(model, comfy.model_patcher.ModelPatcher)
    assert isinstance(clip, comfy.sd.CLIP)
    assert isinstance(vae, comfy.sd.VAE)
    loaded = {f"unet.{k}": v for k, v in model.model.diffusion_model.state_dict().items()}
    loaded |= {f"text.{k}": v for k, v in clip.cond_stage_model.clip_l.transformer.state_dict().items()}
    loaded |= {f"vae.{k}": v for k, v in vae.first_stage_model.state_dict().items()}
    for name, tensor in tensors.items():
        if name not in (load.TOKENS, load.TOKEN_IDS):
            assert torch.equal(loaded[name].half().cpu(), tensor), name


def test_the_token_table_has_its_full_length(file: Path, tensors: dict[str, Tensor]) -> None:
    table = load.read_parts(file)["text"][load.TOKENS.removeprefix("text.")]
    assert table.shape == (49408, load.CONTEXT)
    known = tensors[load.TOKEN_IDS].long()
    assert torch.equal(table[known], tensors[load.TOKENS])
    unknown = torch.ones(len(table), dtype=torch.bool)
    unknown[known] = False
    assert not table[unknown].any()


@torch.inference_mode()
def test_sampling_as_a_workflow_does(file: Path) -> None:
    model, clip, vae = load.load_demo_model(file)
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in WORDS)
    assert positive[0][0].shape == (1, 77, load.CONTEXT)
    assert not torch.equal(positive[0][0], negative[0][0])
    latent = vae.encode(torch.rand(2, 128, 128, 3, generator=torch.Generator().manual_seed(0)))
    assert latent.shape == (2, 4, 16, 16)
    noise = comfy.sample.prepare_noise(latent, 3)
    result = comfy.sample.sample(
        model, noise, 3, 2.0, "euler", "normal", positive, negative, latent, disable_pbar=True, seed=3
    )
    assert result.shape == latent.shape
    assert result.isfinite().all()
    image = vae.decode(result)
    assert image.shape == (2, 128, 128, 3)
    assert 0 <= image.min() <= image.max() <= 1


@torch.inference_mode()
def test_text_states_are_those_that_training_saw(file: Path, tensors: dict[str, Tensor]) -> None:
    """The host and the training script have to agree on what a caption means."""
    _, clip, _ = load.load_demo_model(file)
    text = network.new_text_model()
    parts = load.read_parts(file)["text"]
    text.load_state_dict({k: v.float() for k, v in parts.items()})
    for words in WORDS:
        by_host = clip.encode_from_tokens_scheduled(clip.tokenize(words))[0][0]
        directly = text(network.tokenize([words]))[0]
        assert torch.allclose(by_host.cpu(), directly, atol=1e-4)


def test_another_size_is_refused_by_name_where_layers_are_still_empty(
    tensors: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    name = next(name for name in tensors if name.startswith("unet.") and name.endswith("to_q.weight"))
    for changed, words in (
        ({name: torch.zeros(3, 3)}, "has the size"),
        ({"unet.more.weight": torch.zeros(3)}, "1 unknown"),
    ):
        save_file({**tensors, **changed}, tmp_path / "other.safetensors")
        with pytest.raises(DemoModelError, match=words):
            load.load_demo_model(tmp_path / "other.safetensors")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DemoModelError, match="missing"):
        load.load_demo_model(tmp_path / "model.safetensors")


def test_a_damaged_file(file: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(DemoModelError, match="damaged"):
        load.load_demo_model(cut)
    text = tmp_path / "text.safetensors"
    text.write_text("not a model")
    with pytest.raises(DemoModelError, match="damaged"):
        load.load_demo_model(text)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: {k: v for k, v in t.items() if not k.startswith("vae.")}, "vae, "),
        (lambda t: {k: v for k, v in t.items() if k != load.TOKEN_IDS}, "token table"),
        (lambda t: t | {"model.diffusion_model.x": torch.zeros(1)}, "model.diffusion_model.x"),
        (lambda t: t | {"unet.time_embed.0.bias": torch.zeros(3)}, "size"),
        (lambda t: {k: v for k, v in t.items() if k != "unet.time_embed.0.bias"}, "missing"),
    ],
)
def test_a_foreign_file(file: Path, tmp_path: Path, change, words: str) -> None:
    other = tmp_path / "other.safetensors"
    save_file(change(load_file(file)), other)
    with pytest.raises(DemoModelError, match="not the demo model") as error:
        load.load_demo_model(other)
    assert words in str(error.value)


def test_it_is_a_part_of_the_pack_too() -> None:
    inside = importlib.import_module("attention_edit.demo.bundle.load")
    assert inside.FILE.resolve() == load.FILE.resolve()
    assert inside.UNET == load.UNET


def test_the_shipped_model_is_small() -> None:
    """It is downloaded with the pack."""
    assert load.FILE.stat().st_size <= 20e6
