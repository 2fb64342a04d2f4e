"""Qwen-Image: latents with an axis of frames, its reference pictures, and files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import edits
import pytest
import torch
from attention_edit.attention.engine.acts import Act, Site
from attention_edit.attention.engine.control import Control
from attention_edit.attention.engine.joint import JointSite
from attention_edit.attention.engine.variation import Variation
from attention_edit.attention.methods.background import ExactBackground
from attention_edit.attention.methods.cpam import CPAM
from attention_edit.inversion import report
from attention_edit.inversion.ddim_inversion import DDIMInversion
from attention_edit.inversion.file_format import read, write
from attention_edit.inversion.fixed_point import FixedPointInversion
from tiny_joint import EXACT, LEFT, joint_inversion, joint_latent, joint_model, joint_prompt, joint_run

KIND = "QwenImage"


@pytest.fixture(scope="module")
def model():
    return joint_model(KIND)


def inverted(model, samples):
    with torch.inference_mode():
        return DDIMInversion(4)(model, {"samples": samples}, joint_prompt(5, KIND)).inversion


def test_the_trajectory_has_the_frame_that_the_autoencoder_gives(model):
    """An empty latent has none; the host adds it in sampling, and so does the inversion."""
    framed = joint_latent(1, KIND)
    whole, flat = inverted(model, framed), inverted(model, framed[:, :, 0])
    assert whole.latents.shape == (5, 1, 16, 1, 8, 8)
    assert torch.equal(whole.latents, flat.latents)


@pytest.mark.parametrize("shape", [(1, 16, 2, 8, 8), (1, 4, 1, 8, 8), (1, 4, 8, 8)])
def test_other_latents_are_refused(model, shape):
    with pytest.raises(ValueError, match=r"shape \(B, 16, 1, h, w\), not .*Connect VAE Encode"):
        inverted(model, torch.zeros(shape))


def test_a_mask_for_each_image_keeps_each_image(model):
    pair = joint_inversion(model, KIND, batch=2)
    image = model.get_model_object("latent_format").process_out(pair.latents[0])
    out = joint_run(model, pair, ExactBackground(torch.cat([LEFT, ~LEFT])), kind=KIND, batch=2)
    assert torch.equal(out[0, ..., 4:], image[0, ..., 4:]) and torch.equal(out[1, ..., :4], image[1, ..., :4])
    assert not torch.equal(out[0, ..., :4], image[0, ..., :4])
    for i, mask in enumerate((LEFT, ~LEFT)):
        one = replace(pair, latents=pair.latents[:, i : i + 1])
        alone = joint_run(model, one, ExactBackground(mask), kind=KIND)
        assert edits.difference(out[i : i + 1], alone) < EXACT


def test_a_batch_of_fixed_points_is_its_images_apart(model):
    pair = joint_inversion(model, KIND, batch=2)
    with torch.inference_mode():
        both = FixedPointInversion(iterations=4)(model, pair, None, 1.0).inversion
        for i in range(2):
            one = replace(pair, latents=pair.latents[:, i : i + 1])
            alone = FixedPointInversion(iterations=4)(model, one, None, 1.0).inversion
            assert edits.difference(both.latents[:, i : i + 1], alone.latents) < EXACT


def test_fresh_noise_is_drawn_in_the_masks_cells_alone(model):
    inversion = joint_inversion(model, KIND)
    cells = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    cells[..., :4] = True
    varied = Variation(0.5, 3, cells).start(inversion, inversion.sigmas[-1], 1)
    assert varied.shape == inversion.latents[-1].shape
    same = varied == inversion.latents[-1]
    assert bool(same[..., 4:].all()) and not bool(same[..., :4].any())


def test_packed_is_apart(model):
    inversion = joint_inversion(model, KIND)
    control = CPAM(edits.masks(LEFT), normal_share=0.0, retain_layer=0)
    apart, packed = (joint_run(model, inversion, control, kind=KIND, cfg=3.0, packed=p) for p in (False, True))
    assert edits.difference(packed, apart) < EXACT


@dataclass(frozen=True, eq=False)
class Anew(Control):
    """The image's own attention, computed anew."""

    name = "anew"
    on_joint = True

    def acts_on(self, family):
        return (Act(Site.SELF, family.layers, do=lambda call: call.attend(call.q, call.k, call.v), reads="kv"),)


def test_reference_pictures_stand_behind_the_image(model):
    """As Qwen-Image-Edit has them: where the image's tokens end is told from them."""
    inversion = joint_inversion(model, KIND)
    prompt = joint_prompt(2, KIND, reference_latents=[joint_latent(3, KIND)])
    stock, anew = (joint_run(model, inversion, *found, kind=KIND, positive=prompt) for found in ((), (Anew(),)))
    assert edits.difference(anew, stock) < EXACT
    assert edits.difference(stock, joint_run(model, inversion, kind=KIND)) > 100 * EXACT


def test_a_host_that_does_not_count_their_tokens_is_refused(model, monkeypatch):
    """As those before 0.24."""
    site = JointSite.__call__

    def without(self, *args, transformer_options, **kwargs):
        told = {n: o for n, o in transformer_options.items() if n != "reference_image_num_tokens"}
        return site(self, *args, transformer_options=told, **kwargs)

    inversion = joint_inversion(model, KIND)
    monkeypatch.setattr(JointSite, "__call__", without)
    joint_run(model, inversion, Anew(), kind=KIND)
    prompt = joint_prompt(2, KIND, reference_latents=[joint_latent(3, KIND)])
    with pytest.raises(ValueError, match=r"Update ComfyUI to 0\.24 or newer, or remove the reference pictures"):
        joint_run(model, inversion, Anew(), kind=KIND, positive=prompt)


def test_a_file_holds_the_frame_and_no_second_one(model, tmp_path):
    inversion = joint_inversion(model, KIND)
    write(inversion, tmp_path / "qwen.safetensors")
    assert torch.equal(read(tmp_path / "qwen.safetensors", "qwen").latents, inversion.latents)
    two = replace(inversion, latents=inversion.latents.repeat(1, 1, 1, 2, 1, 1))
    with pytest.raises(ValueError, match=r"latents is of shape \(5, 1, 16, 2, 8, 8\)"):
        write(two, tmp_path / "two.safetensors")


def test_the_reconstruction_check_shows_pictures(model):
    """The host's autoencoder of such latents gives (B, 1, H, W, 3)."""
    vae = SimpleNamespace(decode=lambda z: z[:, :3].movedim(1, -1).sigmoid())
    with torch.inference_mode():
        picture, _, text = report.check(model, joint_inversion(model, KIND, batch=2), vae, 1.0, None)
    assert picture.shape == (2, 8, 8, 3) and "PSNR" in text
