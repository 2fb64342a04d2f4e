"""The text as a function of its tokens' embeddings: the host's own encoding, and its gradient."""

from __future__ import annotations

from threading import Thread

import comfy.model_management
import pytest
import torch
from attention_edit.host.text_encoder import learnable
from tiny_clip import ENCODERS, tiny_clip, written_out

FAMILIES = tuple(ENCODERS)
every_family = pytest.mark.parametrize("kind", FAMILIES)
TEXTS = {
    "plain": ("a cat and a caterpillar", (2, 5)),
    "weights": ("a (cat:1.3) and a (dog:0.7)", (2, 5)),
    "long": ("one two three four five six seven eight nine ten " * 10 + "a cat", (2, 77 + 5)),
}
every_text = pytest.mark.parametrize("name", TEXTS)


def made(kind="SD1", name="plain", dtype=torch.float32):
    """A CLIP and a text, both as nodes have them: in inference mode."""
    with torch.inference_mode():
        clip = tiny_clip(kind, dtype)
        text, positions = TEXTS[name]
        return clip, text, learnable(clip, text, positions)


def own(clip, text):
    """The host's own states and pooled output."""
    with torch.inference_mode():
        return [x.clone() for x in clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)]


def shifted(vectors, amount=0.5):
    with torch.inference_mode(False):
        rng = torch.Generator().manual_seed(1)
        return {key: v + amount * torch.randn(v.shape, generator=rng) for key, v in sorted(vectors.items())}


def anything(like):
    with torch.inference_mode(False):
        return torch.randn(like.shape, generator=torch.Generator().manual_seed(2))


@every_family
@every_text
def test_own_embeddings_give_the_prompts_own_states(kind, name):
    clip, text, free = made(kind, name)
    assert set(free.vectors()) == set(ENCODERS[kind])
    states = free.encode(free.vectors())
    assert torch.equal(states, own(clip, text)[0])
    assert states.shape[1] == (154 if name == "long" else 77)


@pytest.mark.parametrize("kind", ["SD1", "SD2"])
def test_clip_skip_is_the_users(kind):
    clip, text, free = made(kind)
    before = free.encode(free.vectors())
    clip.clip_layer(-3)
    assert torch.equal(free.encode(free.vectors()), own(clip, text)[0])
    assert not torch.equal(free.encode(free.vectors()), before)


def test_a_token_changes_only_what_reads_it():
    """The text is causal: what stands before a token does not know it, all that follows does."""
    _, _, free = made()
    before, after = free.encode(free.vectors()), free.encode(shifted(free.vectors()))
    same = (before == after).all(-1)[0]
    assert same[:2].all() and not same[2:].any()


@every_family
@every_text
def test_the_gradient_is_that_of_the_encoding_written_out(kind, name):
    """In float64, with the network in float32; away from the prompt's own embeddings."""
    clip, text, free = made(kind, name)
    vectors = shifted(free.vectors())
    states = free.encode(vectors)
    along = anything(states)
    with torch.inference_mode():  # as in a node
        found = free.slope(vectors, along)
    with torch.inference_mode(False):
        leaves = {key: v.double().requires_grad_() for key, v in vectors.items()}
        expected = written_out(clip, text, free.positions, leaves)
        assert float((states - expected).detach().norm() / expected.detach().norm()) < 1e-5
        slopes = torch.autograd.grad((expected * along.double()).sum(), list(leaves.values()))
    for key, slope in zip(leaves, slopes, strict=True):
        assert float((found[key] - slope).norm() / slope.norm()) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_computed_in_float32(dtype):
    clip, text, free = made(dtype=dtype)
    vectors = free.vectors()
    assert torch.equal(free.encode(vectors), own(clip, text)[0])
    along = anything(free.encode(vectors))
    slope = free.slope(vectors, along)["l"]
    with torch.inference_mode(False):
        leaves = {"l": vectors["l"].double().requires_grad_()}
        (expected,) = torch.autograd.grad(
            (written_out(clip, text, free.positions, leaves) * along).sum(), [leaves["l"]]
        )
    assert float((slope - expected).norm() / expected.norm()) < 1e-4


@every_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_hosts_own_encoding_stays_bit_for_bit(kind, dtype, monkeypatch):
    """Before, between a forward and its way back, after, and after an interrupt; modules and weights too."""
    clip, text, free = made(kind, dtype=dtype)
    before, others = own(clip, text), own(clip, "something else entirely")
    weights = {key: value.clone() for key, value in clip.cond_stage_model.state_dict().items()}
    forwards = {key: dict(vars(module)).get("forward") for key, module in clip.cond_stage_model.named_modules()}
    vectors, seen = shifted(free.vectors()), []

    def during(*arguments, **options):
        other = Thread(target=lambda: seen.append(own(clip, text)))  # as the server's other prompts would
        other.start()
        other.join()
        return original(*arguments, **options)

    original = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", during)
    free.slope(vectors, anything(before[0]))
    monkeypatch.undo()
    seen.append(own(clip, text))
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        free.slope(vectors, anything(before[0]))
    comfy.model_management.interrupt_current_processing(False)
    seen.append(own(clip, text))
    assert len(seen) == 3
    for states, pooled in seen:
        assert torch.equal(states, before[0]) and torch.equal(pooled, before[1])
    assert all(torch.equal(a, b) for a, b in zip(own(clip, "something else entirely"), others, strict=True))
    after = clip.cond_stage_model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in weights.items())
    found = {key: dict(vars(module)).get("forward") for key, module in clip.cond_stage_model.named_modules()}
    assert found == forwards


def test_vectors_of_an_embedding_may_be_learned_too(tmp_path):
    from safetensors.torch import save_file

    with torch.inference_mode():
        clip = tiny_clip()
        clip.tokenizer.clip_l.embedding_directory = str(tmp_path)
        clip.tokenizer.clip_l.embedding_size = 16
        vector = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
        save_file({"emb_params": vector}, tmp_path / "thing.safetensors")
        text = "a embedding:thing here"
        free = learnable(clip, text, (2, 3))
    assert torch.equal(free.vectors()["l"], vector)
    assert torch.equal(free.encode(free.vectors()), own(clip, text)[0])
    slope = free.slope(free.vectors(), anything(torch.zeros(1, 77, 16)))["l"]
    assert float(slope.norm(dim=-1).min()) > 1e-2


@pytest.mark.parametrize("kind", ["SD1", "SDXL"])
def test_a_quantised_encoder_is_refused_by_name(kind):
    clip = tiny_clip(kind)
    layer = clip.cond_stage_model.clip_l.transformer.text_model.encoder.layers[1].mlp.fc1
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(ValueError, match=r"clip_l is quantised \(torch\.float8_e4m3fn\)"):
        learnable(clip, "a cat", (2,))
