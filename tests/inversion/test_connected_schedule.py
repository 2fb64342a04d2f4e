"""A schedule that is connected: checked, inverted along, followed by edits, kept in files; on UNets and on flows."""

from __future__ import annotations

import math
from dataclasses import replace

import comfy.samplers
import edits
import folder_paths
import pytest
import tiny
import torch
from attention_edit.attention.engine.install import install, pin
from attention_edit.attention.methods.background import ExactBackground
from attention_edit.inversion import cache, report
from attention_edit.inversion.ddim_inversion import DDIMInversion
from attention_edit.inversion.file_format import read, write
from attention_edit.inversion.fixed_point import FixedPointInversion
from attention_edit.inversion.reconstruct import reconstruct
from attention_edit.nodes.inversion import InvertNode
from comfy_extras.nodes_custom_sampler import SplitSigmas
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from tiny_joint import joint_inversion, joint_latent, joint_model, joint_prompt, joint_run

SCHEDULE = "leading, offset 0 (editing papers)"
SCHEDULERS = pytest.mark.parametrize("scheduler", ["karras", "simple", "beta"])
FLOAT32 = 1e-5
"""Relative difference that float32 leaves over a handful of steps."""


def sigmas_of(model, scheduler="karras", steps=5):
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps)


def inverted(model, sigmas, kind="SD1", **settings):
    joint = kind == "SD3"
    latent, prompt = (joint_latent(1, kind), joint_prompt(5, kind)) if joint else (tiny.latent(1), tiny.prompt(5, kind))
    with torch.inference_mode():
        given = model, {"samples": latent}, prompt, 50, SCHEDULE
        return InvertNode.execute(*given, sigmas=sigmas, **settings).result[0]


def gentle_model(kind="SD1", v=False):
    """Random weights whose answer changes as gently with the latent as a trained model's."""
    model = tiny.tiny_model(kind, v)
    model.model.diffusion_model.out[2].weight.data.mul_(0.1)
    return model


@SCHEDULERS
def test_its_levels_are_the_inversions_and_the_image_lies_at_0(scheduler):
    for model, kind in ((tiny.tiny_model(), "SD1"), (joint_model("SD3"), "SD3")):
        sigmas = sigmas_of(model, scheduler)
        inversion = inverted(model, sigmas, kind)
        assert inversion.schedule == sigmas.tolist()
        assert inversion.steps == 5 and "5 steps, connected sigmas" in inversion.describe()
        for sigma, z in zip(inversion.sigmas, inversion.latents, strict=True):
            x = z if kind == "SD3" else z * (1 + sigma * sigma) ** 0.5
            assert torch.equal(inversion.at(sigma), x)


def test_a_flows_own_schedule_connected_is_the_same_inversion():
    model = joint_model("SD3")
    found, own = inverted(model, sigmas_of(model, "simple", 4), "SD3"), joint_inversion(model, "SD3", steps=4)
    assert found.sigmas == own.sigmas
    assert torch.equal(found.latents, own.latents)


def unet_run(model, inversion, positive, *controls):
    """Edit Setup's model on its schedule, under guidance."""
    for control in controls:
        model = install(model, control, inversion)
    pinned, sigmas = pin(model, inversion, tuple(inversion.schedule)), torch.tensor(inversion.schedule)
    return tiny.sample(pinned, positive, tiny.prompt(3), edits.run_start(), sigmas, 1.0 if not controls else 4.0)


@pytest.mark.parametrize(("kind", "v"), [("SD1", False), ("SD2", True)])
def test_sampling_goes_back_to_the_image_at_0(kind, v):
    """Stock Euler through Edit Setup's schedule, from a fixed point of its own steps; of a schedule's last part."""
    model = gentle_model(kind, v)
    sigmas = sigmas_of(model, "karras", 12)
    inversion = inverted(model, sigmas[sigmas < 2], kind)
    with torch.inference_mode():
        fixed = FixedPointInversion(tolerance=1e-6, iterations=40)(model, inversion, None, 1.0).inversion
        assert reconstruct(model, fixed, 1.0, None).errors[-1] < 10 * FLOAT32
    out = unet_run(model, fixed, inversion.conditioning)
    image = model.get_model_object("latent_format").process_out(fixed.latents[0])
    assert edits.difference(out, image) < 10 * FLOAT32


def test_edits_follow_it_and_keep_the_image_exactly():
    for model, kind in ((tiny.tiny_model(), "SD1"), (joint_model("SD3"), "SD3")):
        inversion = inverted(model, sigmas_of(model), kind)
        image = model.get_model_object("latent_format").process_out(inversion.latents[0])
        half = image.shape[-1] // 2
        left = torch.zeros(1, 8 * image.shape[-2], 8 * image.shape[-1], dtype=torch.bool)
        left[..., : 8 * half] = True
        given = model, inversion
        if kind == "SD3":
            out = joint_run(*given, ExactBackground(left), kind=kind)
        else:
            out = unet_run(*given, tiny.prompt(2), ExactBackground(left))
        assert torch.equal(out[..., half:], image[..., half:]), kind
        assert not torch.equal(out[..., :half], image[..., :half]), kind


def test_two_runs_in_a_row_are_one_run():
    """The first one ends inside, where the schedule's last level, 0, has no logarithm."""
    model = tiny.tiny_model()
    inversion = inverted(model, sigmas_of(model))
    pinned = pin(install(model, ExactBackground(edits.box()), inversion), inversion, tuple(inversion.schedule))
    sigmas = torch.tensor(inversion.schedule)
    start = model.get_model_object("latent_format").process_out(inversion.at(inversion.sigmas[-1]))
    texts = tiny.prompt(2), tiny.prompt(3)
    high, low = SplitSigmas.execute(sigmas, 2).args
    with torch.inference_mode():
        whole = tiny.sample(pinned, *texts, start, sigmas)
        half = tiny.sample(pinned, *texts, start, high)
        both = tiny.sample(pinned, *texts, half, low)
    assert edits.difference(both, whole) < FLOAT32
    assert edits.difference(half, whole) > 1e-2


def test_fine_steps_go_between_its_levels():
    model = tiny.tiny_model()
    coarse, fine = (inverted(model, sigmas_of(model), fine_steps=steps) for steps in (0, 40))
    assert coarse.sigmas == fine.sigmas
    assert torch.equal(coarse.latents[0], fine.latents[0]) and not torch.equal(coarse.latents[-1], fine.latents[-1])


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ([], "1 to 1000 steps.*these have 0"),
        ([1.0], "1 to 1000 steps.*these have 0"),
        ([0.0, 0.5, 1.0], r"fall from noise to image.*Flip Sigmas.*level 1 is 0\.5000, behind 0\.0000"),
        ([1.0, 0.5, 0.5, 0.0], r"level 2 is 0\.5000, behind 0\.5000"),
        ([1.0, math.nan, 0.0], "level 1 is nan"),
        ([math.inf, 0.5, 0.0], "level 1 is 0.5000, behind inf"),
        ([1.0, 0.5, 0.2], r"end at 0.*these end at 0\.2000"),
        ([1.0, 0.0, -1.0], r"these end at -1\.0000"),
    ],
)
def test_what_is_no_schedule_is_refused(sigmas, message):
    for model, kind in ((tiny.tiny_model(), "SD1"), (joint_model("SD3"), "SD3")):
        with pytest.raises(ValueError, match=message):
            inverted(model, torch.tensor(sigmas), kind)


def test_another_models_schedule_is_refused():
    unet, flow = tiny.tiny_model(), joint_model("SD3")
    with pytest.raises(ValueError, match=r"Give the scheduler node the model.*from 0\.00\d+ to 1\.0000.*at 14\.61"):
        inverted(flow, sigmas_of(unet), "SD3")
    with pytest.raises(ValueError, match=r"from 0\.0292 to 14\.61\d+.*begin at 20\.0000"):
        inverted(unet, torch.tensor([20.0, 3.0, 0.0]))
    inversion = inverted(unet, sigmas_of(unet))
    noisier = replace(inversion, sigmas=(*inversion.sigmas[:-1], 20.0))
    with pytest.raises(ValueError, match=r"sigma 20\.0000 of the inversion"):
        noisier.check_levels(unet.get_model_object("model_sampling"))
    inversion.check_levels(unet.get_model_object("model_sampling"))


@pytest.mark.parametrize(("sampling", "zsnr"), [("eps", True), ("lcm", False)])
def test_another_models_table_is_refused(sampling, zsnr):
    """Its levels go beyond the schedule's or as far, and are those of other timesteps."""
    unet = tiny.tiny_model()
    other = ModelSamplingDiscrete().patch(unet, sampling, zsnr)[0]
    inversion = inverted(unet, sigmas_of(unet))
    with pytest.raises(ValueError, match="Invert the image with the model that is sampled"):
        inversion.check_levels(other.get_model_object("model_sampling"))


def test_a_file_holds_it_and_the_cache_tells_it_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    model = tiny.tiny_model()
    given = model, {"samples": tiny.latent(1)}, tiny.prompt(5), True
    with torch.inference_mode():
        ways = [DDIMInversion(sigmas=tuple(sigmas_of(model, name).tolist())) for name in ("karras", "beta", "karras")]
        *found, again = (report.begun(way, *given) for way in ways)
    assert torch.equal(again.latents, found[0].latents)
    assert len(list(cache.entries_folder().iterdir())) == 2
    write(found[0], tmp_path / "connected.safetensors")
    held = read(tmp_path / "connected.safetensors", "connected")
    assert (held.sigmas, held.steps, held.connected) == (found[0].sigmas, 5, found[0].connected)
    assert held.connected
    spoiled = replace(found[0], sigmas=(0.01, *found[0].sigmas[1:]))
    with pytest.raises(ValueError, match=r"inversion\.sigmas\[0\] is 0\.01; expected is 0"):
        write(spoiled, tmp_path / "spoiled.safetensors")
