"""Transformers: Negative-Prompt Inversion and Proximal Guidance, where there is a negative prompt."""

from __future__ import annotations

from dataclasses import replace

import edits
import pytest
import tiny_joint
import torch
from attention_edit.attention.engine.install import install, pin
from attention_edit.attention.methods.cpam import CPAM
from attention_edit.attention.methods.proximal import HARD, RULES, ProximalGuidance, ProximalHold
from attention_edit.inversion.ddim_inversion import DDIMInversion
from attention_edit.inversion.negative_prompt import NegativePromptInversion
from attention_edit.inversion.reconstruct import reconstruct
from tiny_joint import EXACT, LEFT, joint_inversion, joint_latent, joint_model, joint_prompt, joint_run, joint_sample

KINDS = pytest.mark.parametrize("kind", list(tiny_joint.CONFIGS))


def improved(inversion):
    return NegativePromptInversion()(None, inversion, None, 1.0).inversion


@KINDS
def test_guidance_is_inert_for_the_source(kind):
    """Whatever negative prompt is connected, shorter than the source's here; in the check and in a sampler."""
    model = joint_model(kind)
    prompt = joint_prompt(5, kind, tokens=20)
    with torch.inference_mode():
        inversion = DDIMInversion(4, flow_iterations=2)(model, {"samples": joint_latent(1, kind)}, prompt).inversion
        found = improved(inversion)
        unguided, guided = (reconstruct(model, x, cfg, None).latent for x, cfg in ((inversion, 1.0), (found, 3.0)))
    assert edits.difference(guided, unguided) < EXACT
    prompt = inversion.conditioning  # with the source's own guidance, where the model reads one
    assert edits.difference(joint_run(model, found, kind=kind, cfg=3.0, positive=prompt), unguided) < EXACT
    assert edits.difference(joint_run(model, inversion, kind=kind, cfg=3.0, positive=prompt), unguided) > 100 * EXACT


@KINDS
def test_it_is_the_source_prompt_as_negative_prompt(kind):
    """Under an edit too, whose source has texts of its own."""
    model = joint_model(kind)
    inversion = joint_inversion(model, kind)
    control = CPAM(edits.masks(LEFT, LEFT), normal_share=0.0)
    ours = joint_run(model, improved(inversion), control, kind=kind, cfg=3.0)
    patched = pin(install(model, control, inversion), inversion, tuple(inversion.schedule))
    start = torch.zeros(1, *inversion.latents.shape[2:])
    sigmas = torch.tensor([1.0, 0.0])
    theirs = joint_sample(patched, joint_prompt(2, kind), inversion.conditioning, start, start, sigmas, 3.0)
    assert edits.difference(ours, theirs) < EXACT
    assert edits.difference(ours, joint_run(model, inversion, control, kind=kind, cfg=3.0)) > 100 * EXACT


@KINDS
@pytest.mark.parametrize("rule", RULES)
def test_where_all_is_below_the_threshold_the_negative_prompt_is_drawn(kind, rule):
    model = joint_model(kind)
    inversion = improved(joint_inversion(model, kind))
    everything = ProximalGuidance(1.0, rule)
    out = joint_run(model, inversion, everything, kind=kind, cfg=3.0)
    plain = joint_run(model, inversion, kind=kind, cfg=3.0, positive=inversion.conditioning)
    # The released rule counts the source's zeros too, so that its quantile of one is the largest difference as well.
    assert edits.difference(out, plain) < EXACT
    assert edits.difference(joint_run(model, inversion, kind=kind, cfg=3.0), plain) > 100 * EXACT


@KINDS
def test_what_guidance_leaves_is_held_at_the_source(kind):
    """All of it: the image of the inversion comes back, though the sampled way is another."""
    model = joint_model(kind)
    inversion = improved(joint_inversion(model, kind, iterations=1))
    limit = ProximalGuidance(1.0, HARD)
    held = joint_run(model, inversion, limit, ProximalHold(limit, start=0.0), kind=kind, cfg=3.0)
    image = model.get_model_object("latent_format").process_out(inversion.latents[0])
    assert edits.difference(held, image) < EXACT
    assert edits.difference(joint_run(model, inversion, limit, kind=kind, cfg=3.0), image) > 100 * EXACT


@KINDS
def test_a_batch_is_its_images_apart(kind):
    model = joint_model(kind)
    inversion = improved(joint_inversion(model, kind, batch=2))
    limit = ProximalGuidance()
    controls = (limit, ProximalHold(limit))
    both = joint_run(model, inversion, *controls, kind=kind, cfg=3.0, batch=2)
    for index in (0, 1):
        one = replace(inversion, latents=inversion.latents[:, index : index + 1])
        single = joint_run(model, one, *controls, kind=kind, cfg=3.0)
        assert edits.difference(both[index : index + 1], single) < 1e-4
