"""FlowEdit on tiny random transformers: its algorithm, what it must leave alone, and what it refuses."""

from __future__ import annotations

import comfy.samplers
import edits
import pytest
import tiny
import tiny_joint
import torch
from attention_edit.attention.engine.install import install
from attention_edit.attention.methods.flow_edit import FlowEdit, flow_edit_step
from attention_edit.attention.methods.fpe import FPE
from attention_edit.host.transformers import takes_guidance
from attention_edit.nodes.flow_edit import FlowEditNode
from tiny_joint import EXACT, joint_inversion, joint_latent, joint_model, joint_prompt

KINDS = pytest.mark.parametrize("kind", list(tiny_joint.CONFIGS))
SIGMAS = torch.tensor([1.0, 0.85, 0.6, 0.3, 0.0])


def flow_edited(model, kind, sampler, target, latent=None, **given):
    """A run as SamplerCustomAdvanced makes it."""
    cfg, seed, sigmas = given.get("cfg", 3.0), given.get("seed", 4), given.get("sigmas", SIGMAS)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(target, joint_prompt(3, kind))
    guider.set_cfg(cfg)
    latent = joint_latent(1, kind) if latent is None else latent
    with torch.inference_mode():
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
        return guider.sample(
            noise, latent, sampler, sigmas, denoise_mask=given.get("mask"), disable_pbar=True, seed=seed
        )


def plain(kind, text, guidance):
    """The same prompt on both sides."""
    return joint_prompt(text, kind), FlowEdit(joint_prompt(text, kind), guidance, 0.0)


@KINDS
def test_the_same_prompt_on_both_sides_is_the_image(kind):
    target, sampler = plain(kind, 5, 3.0)
    model, cfg = joint_model(kind), 3.0
    if takes_guidance(model):  # the guider's prompt has to say the same
        target[0][1]["guidance"], cfg = 3.0, 1.0
    out = flow_edited(model, kind, sampler, target, cfg=cfg)
    assert edits.difference(out, joint_latent(1, kind)) < EXACT


@KINDS
def test_another_prompt_is_another_image_and_a_seed_the_same(kind):
    model, sampler = joint_model(kind), FlowEdit(joint_prompt(5, kind), 2.0, 0.0)
    out, again = (flow_edited(model, kind, sampler, joint_prompt(2, kind)) for _ in range(2))
    assert torch.equal(out, again) and torch.isfinite(out).all()
    assert edits.difference(out, joint_latent(1, kind)) > 100 * EXACT
    assert not torch.equal(out, flow_edited(model, kind, sampler, joint_prompt(2, kind), seed=5))


def test_the_algorithm_written_out():
    """With a linear network, whose prediction is known: clean(z) = a z + b."""
    image, edit = torch.randn(2, 1, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    noises = list(torch.randn(3, 1, 4, 6, 6, generator=torch.Generator().manual_seed(2)))
    high, low = 0.7, 0.4
    found = flow_edit_step(lambda z, s: 0.2 * z + s, lambda z, s: 0.5 * z - 1, image, edit, noises, (high, low))
    moves = []
    for noise in noises:
        z_source = (1 - high) * image + high * noise
        z_target = edit + z_source - image
        v_source = (z_source - (0.2 * z_source + high)) / high
        v_target = (z_target - (0.5 * z_target - 1)) / high
        moves.append((low - high) * (v_target - v_source))
    assert torch.allclose(found, torch.stack(moves).mean(0), atol=1e-6)


@pytest.mark.parametrize("kind", ["SD3", "Flux"])
def test_outside_the_mask_nothing_changes(kind):
    """To the bit in the network's scale, in which the host hands the latent over."""
    model = joint_model(kind)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    for end in (1.0, 0.5):
        sampler = FlowEdit(joint_prompt(5, kind), 2.0, 0.0, end)
        out = flow_edited(model, kind, sampler, joint_prompt(2, kind), mask=mask)
        form = model.get_model_object("latent_format")
        same = form.process_out(form.process_in(joint_latent(1, kind)))
        assert torch.equal(out[..., 4:], same[..., 4:])
        assert edits.difference(out[..., :4], same[..., :4]) > 100 * EXACT


def test_a_batch_is_its_images_apart():
    model, sampler = joint_model("SD3"), FlowEdit(joint_prompt(5, "SD3"), 2.0, 0.0, 0.75, average=2)
    pair = joint_latent(1, "SD3", batch=2)
    both = flow_edited(model, "SD3", sampler, joint_prompt(2, "SD3"), pair)
    for i in range(2):
        alone = flow_edited(model, "SD3", sampler, joint_prompt(2, "SD3"), pair[i : i + 1])
        assert edits.difference(both[i : i + 1], alone) < EXACT


@pytest.mark.parametrize(
    ("start", "end", "average", "calls"), [(0.0, 1.0, 1, 8), (0.25, 1.0, 3, 18), (0.5, 0.75, 1, 3)]
)
def test_calls_of_the_model(start, end, average, calls):
    """Two for each draw of noise in the window, one for each step behind it; both halves of guidance are one call."""
    model, seen = joint_model("SD3").clone(), []
    model.set_model_unet_function_wrapper(
        lambda run, given: (seen.append(1), run(given["input"], given["timestep"], **given["c"]))[1]
    )
    flow_edited(model, "SD3", FlowEdit(joint_prompt(5, "SD3"), 2.0, start, end, average), joint_prompt(2, "SD3"))
    assert len(seen) == calls


def test_what_it_refuses():
    with pytest.raises(ValueError, match="Set start below end"):
        FlowEditNode.execute(joint_prompt(5), 1.5, 0.6, 0.5, 1)
    sampler = FlowEditNode.execute(joint_prompt(5, "SD3"), 1.5, 0.0, 1.0, 1)[0]
    model = joint_model("SD3")
    inversion = joint_inversion(model, "SD3")
    edited, levels = install(model, FPE(layers="all", end=1.0), inversion), torch.tensor(inversion.schedule)
    with pytest.raises(ValueError, match="in front of the edit nodes"):
        flow_edited(edited, "SD3", sampler, joint_prompt(2, "SD3"), sigmas=levels)
    unet = tiny.tiny_model()
    guider = comfy.samplers.CFGGuider(unet)
    guider.set_conds(tiny.prompt(2), tiny.prompt(3))
    noise = tiny.latent(1)
    with pytest.raises(ValueError, match="Connect a rectified flow"), torch.inference_mode():
        guider.sample(noise, noise, sampler, torch.tensor([14.0, 1.0, 0.0]), disable_pbar=True, seed=0)
    several = FlowEdit([*joint_prompt(5, "SD3"), *joint_prompt(6, "SD3")], 1.5, 0.0)
    with pytest.raises(ValueError, match="2 parts"):
        flow_edited(model, "SD3", several, joint_prompt(2, "SD3"))
