"""What is refused or warned of where a run would go wrong in silence, and what a run does when memory is short."""

from __future__ import annotations

import logging
from dataclasses import replace

import comfy.samplers
import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine import install as engine
from attention_edit.attention.engine.checks import check_source_prompt
from attention_edit.attention.masks.refinement import Refinement
from attention_edit.attention.methods.background import ExactBackground
from attention_edit.attention.methods.cpam import CPAM
from attention_edit.attention.methods.local_blend import LocalBlend
from attention_edit.attention.methods.mag.control import MAG
from attention_edit.attention.methods.mag.install import add_guidance
from attention_edit.attention.methods.mag.parts import look_up
from attention_edit.attention.methods.masactrl import MasaCtrl, WordMasks
from attention_edit.attention.methods.p2p import P2P
from attention_edit.attention.methods.proximal import ProximalGuidance
from attention_edit.host.families import family_of
from attention_edit.nodes.local_blend import LocalBlendNode
from prompts import prompt

SOURCE, TARGET = prompt("a red cat"), prompt("a blue cat")


@pytest.mark.parametrize("cfg", [7.5, 1.0])
def test_a_packed_source_that_does_not_fit_runs_apart(model, inversion, monkeypatch, caplog, cfg):
    """The same result as apart from the beginning, and no more than the first step is tried twice."""
    control = CPAM(edits.masks(), normal_share=0.0)
    apart = edits.run(model, inversion, control, cfg=cfg)
    tried, most = [], 2 if cfg > 1 else 1

    def short_of_memory(apply, args):
        if len(args["input"]) > most:
            tried.append(len(args["input"]))
            raise torch.cuda.OutOfMemoryError("out of memory")
        return apply(args["input"], args["timestep"], **args["c"])

    limited = model.clone()
    limited.set_model_unet_function_wrapper(short_of_memory)
    with caplog.at_level(logging.WARNING):
        packed = edits.run(limited, inversion, control, cfg=cfg, packed=True)
    assert tried == [most + 1]
    assert "out of memory with one_call" in caplog.text
    assert torch.equal(packed, apart)


def test_other_errors_of_a_packed_run_are_not_hidden(model, inversion):
    patched = model.clone()
    patched.set_model_unet_function_wrapper(lambda *_: (_ for _ in ()).throw(RuntimeError("another fault")))
    with pytest.raises(RuntimeError, match="another fault"):
        edits.run(patched, inversion, CPAM(edits.masks()), packed=True)


@pytest.mark.parametrize(("channels", "text"), [(9, "9 channels"), (8, "8 channels")])
def test_inpainting_and_instruction_models_are_refused_by_name(channels, text):
    model = tiny.tiny_model()
    model.model.diffusion_model.in_channels = channels
    with pytest.raises(ValueError, match=f"{text}.*inpainting or InstructPix2Pix"):
        family_of(model)


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "lcm", "ddpm", "er_sde"])
def test_samplers_that_add_noise_are_warned_of(model, inversion, caplog, sampler):
    with caplog.at_level(logging.WARNING):
        edits.run(model, inversion, sampler=sampler)
    assert f"{sampler} adds noise of its own" in caplog.text


@pytest.mark.parametrize("sampler", ["euler", "ddim", "heun", "dpm_2", "lms", "dpmpp_2m", "uni_pc", "deis"])
def test_other_samplers_are_not_warned_of(model, inversion, caplog, sampler):
    with caplog.at_level(logging.WARNING):
        edits.run(model, inversion, sampler=sampler)
    assert "adds noise" not in caplog.text


def encoded(source, inversion, scale=1.0):
    return replace(source, states=inversion.conditioning[0][0] * scale)


@pytest.mark.parametrize(
    "control",
    [
        lambda source: P2P(source, TARGET),
        lambda source: LocalBlend(source, TARGET, ["cat"], ["cat"]),
        lambda source: MasaCtrl(words=WordMasks(source, TARGET, "cat", "cat")),
    ],
    ids=["p2p", "local blend", "masactrl"],
)
def test_a_source_prompt_that_the_image_was_not_inverted_with(model, inversion, control):
    """Its words would be looked for in another text, and what is found there looks like an edit."""
    fits = control(encoded(SOURCE, inversion, 1.001))  # as stored in half precision
    assert torch.isfinite(edits.run(model, inversion, fits)).all()
    for states in (tiny.prompt(3)[0][0], tiny.prompt(5, tokens=154)[0][0]):
        with pytest.raises(ValueError, match=r"'a red cat'.*another prompt.*Connect"):
            edits.run(model, inversion, control(replace(SOURCE, states=states)))


def test_without_an_image_there_is_no_source_prompt_to_check():
    class Run:
        inversion = None

    assert check_source_prompt(Run(), replace(SOURCE, states=torch.zeros(1, 77, 8)), "P2P") is None  # refuses nothing


def test_layers_beyond_the_last_one_are_warned_of(model, inversion, caplog):
    with caplog.at_level(logging.WARNING):
        out = edits.run(model, inversion, MasaCtrl(first_layer=16))
        edits.run(model, inversion, CPAM(edits.masks(retain=True), retain_layer=16))
    assert torch.equal(out, edits.run(model, inversion))
    assert "MasaCtrl does nothing: first_layer is 16, and the model's last layer is 15" in caplog.text
    assert "CPAM keeps no look: retain_layer is 16" in caplog.text


def test_local_blend_wants_a_mask_that_selects_something(model, inversion):
    given = (model, inversion, SOURCE, TARGET, "", "", "", 0.2, 0.3, 0.3)
    with pytest.raises(ValueError, match="selects nothing"):
        LocalBlendNode.execute(*given, mask=torch.zeros(1, 128, 128))
    with pytest.raises(ValueError, match=r"^Paint the mask of Local Blend at full.*strongest pixel is 0\.3,"):
        LocalBlendNode.execute(*given, mask=torch.full((1, 128, 128), 0.3))


@pytest.mark.parametrize(
    "control",
    [
        lambda mask: ExactBackground(mask),
        lambda mask: CPAM(edits.masks(mask)),
        lambda mask: MasaCtrl(masks=(mask, mask)),
        lambda mask: MAG(((2,),), mask),
    ],
    ids=["background", "cpam", "masactrl", "mag-edit"],
)
def test_a_mask_of_another_picture_is_refused_where_it_meets_the_inversion(model, inversion, control):
    """On the method's own node, and not at the sampler."""
    with pytest.raises(ValueError, match="is 128x64, but the image is about 128x128"):
        engine.install(model, control(torch.ones(1, 64, 128, dtype=torch.bool)), inversion)


def test_mag_edit_names_one_of_several_occurrences():
    """Positions count the begin token."""
    twice = prompt("a cat and a cat")
    assert look_up(twice, "cat") == ((2, 5),)
    assert look_up(twice, "cat#2,") == ((5,),)
    with pytest.raises(ValueError, match="MAG-Edit needs words"):
        look_up(twice, " , ")


@pytest.mark.parametrize(("height", "width"), [(16, 24), (18, 13)])
def test_latents_that_are_not_square_or_odd(model, height, width):
    """Maps of odd sides are rounded up where the UNet halves them."""
    with torch.inference_mode():
        latent = {"samples": tiny.latent(1, height=height, width=width)}
        record = edits.DDIMInversion(4)(model, latent, tiny.prompt(5)).inversion
    mask = torch.zeros(1, height * 8, width * 8, dtype=torch.bool)
    mask[:, 16:64, 24:72] = True
    for packed in (False, True):
        patched = engine.install(model, CPAM(edits.masks(mask), normal_share=0.0), record, packed)
        patched = engine.install(patched, P2P(SOURCE, TARGET, self_window=(0.0, 0.0)), record)
        patched = engine.pin(patched, record, tuple(record.schedule))
        start, stub = torch.zeros(1, 4, height, width), torch.tensor([14.6, 0.0])
        out = tiny.sample(patched, tiny.prompt(2), tiny.prompt(3), start, stub)
        assert out.shape == start.shape and torch.isfinite(out).all()


def test_guidance_of_one_with_both_halves(model, inversion):
    """`disable_cfg1_optimization`: the host runs the negative prompt at cfg 1 too, and the edit is the same."""
    control = CPAM(edits.masks(), normal_share=0.0)
    alone = edits.run(model, inversion, control, cfg=1.0)
    both = model.clone()
    both.set_model_sampler_post_cfg_function(lambda args: args["denoised"], disable_cfg1_optimization=True)
    assert both.model_options["disable_cfg1_optimization"]
    assert edits.difference(edits.run(both, inversion, control, cfg=1.0), alone) < 1e-4


def test_sums_are_not_made_twice(model, inversion):
    """Out of memory in the middle of a call: layers before it have added to the sums already."""
    calls = []

    def short_of_memory(apply, args):
        calls.append(len(args["input"]))
        raise torch.cuda.OutOfMemoryError("out of memory")

    limited = model.clone()
    limited.set_model_unet_function_wrapper(short_of_memory)
    refined = edits.masks().refined(Refinement((1,), 77))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        edits.run(limited, inversion, CPAM(refined), packed=True)
    assert calls == [3]


class ThreePrompts(comfy.samplers.CFGGuider):
    """A guider like the host's DualCFGGuider."""

    cfg1 = cfg2 = 3.0

    def set_prompts(self, first, second, negative):
        self.inner_set_conds({"positive": first, "middle": second, "negative": negative})


@pytest.mark.parametrize("control", [MasaCtrl(), ProximalGuidance()], ids=["masactrl", "proximal"])
def test_a_guider_with_three_prompts_is_refused_where_halves_count(model, inversion, control):
    patched = engine.pin(engine.install(model, control, inversion), inversion, tuple(inversion.schedule))
    guider = ThreePrompts(patched)
    guider.set_prompts(tiny.prompt(2), tiny.prompt(4), tiny.prompt(3))
    start = edits.run_start()
    with pytest.raises(ValueError, match="this guider has three prompts"), torch.inference_mode():
        guider.sample(torch.zeros_like(start), start, comfy.samplers.sampler_object("euler"), torch.tensor([14.6, 0.0]))


@pytest.mark.parametrize("zero", [{"scale": 0.0}, {"weight": 0.0}, {"iterations": 0}])
def test_mag_edit_of_no_strength_is_the_run_without_it(model, inversion, zero):
    control = P2P(SOURCE, TARGET)
    bare = edits.run(model, inversion, control)
    patched = engine.install(model, control, inversion)
    part = MAG(((2,),), edits.box(), blend=1.0, **zero)
    patched = engine.pin(add_guidance(patched, part, inversion), inversion, tuple(inversion.schedule))
    out = tiny.sample(patched, tiny.prompt(2), tiny.prompt(3), edits.run_start(), torch.tensor([14.6, 0.0]))
    assert torch.equal(out, bare)
