"""Positions of transformers whose image stands behind the prompt, on tiny random models of the host's classes."""

from __future__ import annotations

import edits
import pytest
import torch
from attention_edit.attention.engine.call import Features
from attention_edit.attention.engine.install import install
from attention_edit.attention.engine.turning import moved_to, turned
from attention_edit.attention.methods.fpe import FPE
from attention_edit.host.transformers import ZIMAGE, Turn
from tiny_joint import joint_drawn, joint_inversion, joint_latent, joint_model, joint_prompt, joint_run, joint_sample

SHORT, LONG = 20, 50
"""Tokens of two prompts; Z-Image makes them 32 and 64."""


def first_block(model, kind, tokens):
    """Keys (1, N, C) of the image in the first block, and how many tokens stand ahead of it."""
    seen = []

    def watch(func, q, k, v, heads, *args, **kwargs):
        if kwargs["transformer_options"].get("block_index") == 0:
            seen.append(k)
        return func(q, k, v, heads, *args, **kwargs)

    watched = model.clone()
    watched.model_options["transformer_options"]["optimized_attention_override"] = watch
    prompt, noise = joint_prompt(5, kind, tokens), joint_latent(1, kind)
    joint_sample(watched, prompt, prompt, torch.zeros_like(noise), noise, torch.tensor([0.7, 0.0]))
    (k,) = seen
    ahead = k.shape[2] - noise.shape[-1] ** 2 // 4
    return k[:, :, ahead:].transpose(1, 2).flatten(2), ahead


@pytest.mark.parametrize("kind", ["ZImage", "Lumina2"])
def test_keys_of_one_prompts_length_are_those_of_the_other(kind):
    """In the first block the image has not seen the text yet."""
    model = joint_model(kind)
    (there, before), (here, ahead) = (first_block(model, kind, tokens) for tokens in (SHORT, LONG))
    turn = ZIMAGE.turn_of(model.model.diffusion_model)
    heads = model.model.diffusion_model.layers[0].attention.n_local_heads
    moved = moved_to(Features(k=there, ahead=before), ahead, turn, heads)
    assert ahead > before
    assert float((there - here).abs().max()) > 0.1
    assert torch.allclose(moved.k, here, atol=1e-5)
    assert (moved.q, moved.ahead) == (None, ahead)


def test_a_turn_and_its_way_back():
    x, turn = torch.randn(2, 5, 3 * 16, generator=torch.Generator().manual_seed(1)), Turn(256.0, 6)
    found = turned(x, 7, turn, heads=3)
    each, before = found.unflatten(-1, (3, 16)), x.unflatten(-1, (3, 16))
    assert torch.equal(each[..., 6:], before[..., 6:])
    angle = torch.tensor(7 * 256.0 ** (-2 / 6))
    expected = torch.complex(before[..., 2], before[..., 3]) * torch.polar(torch.ones(()), angle)
    assert torch.allclose(torch.complex(each[..., 2], each[..., 3]), expected, atol=1e-6)
    assert torch.allclose(turned(found, -7, turn, heads=3), x, atol=1e-6)
    assert moved_to(Features(k=x, ahead=3), 3, turn, 3).k is x
    assert moved_to(Features(k=x, ahead=3), 9, None, 3).k is x


def test_reference_pictures_are_refused():
    model = joint_model("ZImage")
    inversion = joint_inversion(model, "ZImage")
    edited = install(model, FPE(layers="all", end=1.0), inversion)
    prompt = joint_prompt(2, "ZImage", reference_latents=[joint_latent(3, "ZImage")])
    with pytest.raises(ValueError, match=r"Remove the reference pictures .* Z-Image"):
        joint_run(edited, inversion, kind="ZImage", positive=prompt)


def test_with_pads_prompts_of_one_length_keep_the_source_and_others_are_remarked_on(caplog):
    """16 tokens of an image are filled up to 32, at a position that is fixed."""
    model = joint_model("ZImage")
    inversion, image = joint_drawn(model, "ZImage", side=8)
    control, said = FPE(layers="1-2", end=1.0), "Z-Image sees its image differently"
    edited = joint_run(model, inversion, control, kind="ZImage", positive=inversion.conditioning)
    assert edits.difference(edited, image) < 2e-5
    assert said not in caplog.text
    joint_run(model, inversion, control, kind="ZImage", positive=joint_prompt(2, "ZImage", 40))
    assert said in caplog.text
