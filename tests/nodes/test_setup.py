"""Edit Setup, Exact Background and the nodes as the host's own sampler nodes use them."""

from __future__ import annotations

import edits
import pytest
import tiny
import torch
from attention_edit.attention.methods.cpam import CPAM
from attention_edit.inversion.start import schedule_from
from attention_edit.nodes.background import ExactBackgroundNode
from attention_edit.nodes.cpam import CPAMNode
from attention_edit.nodes.edit_masks import EditMasksNode
from attention_edit.nodes.inversion import InvertNode, ReconstructNode
from attention_edit.nodes.setup import EditSetupNode
from custom_sampler import custom


@pytest.fixture(scope="module")
def model():
    return tiny.tiny_model()


@pytest.fixture(scope="module")
def inversion(model):
    return edits.invert(model, steps=6)


@pytest.fixture(autouse=True)
def as_the_host_runs_nodes():
    with torch.inference_mode():
        yield


def ksampler(model, latent, steps=20, scheduler="karras", denoise=1.0, sampler="euler"):
    import nodes

    return nodes.KSampler().sample(
        model, 7, steps, 7.5, sampler, scheduler, tiny.prompt(2), tiny.prompt(3), latent, denoise
    )[0]["samples"]


def advanced(model, noise, sigmas, latent, sampler="euler"):
    return custom(model, noise, sigmas, latent, sampler, 7.5)["samples"]


def test_both_sampler_nodes_run_the_edit_alike(model, inversion):
    masks = EditMasksNode.execute(edits.box().float(), "replace or recolour", 0.1, False).args[0]
    edited = CPAMNode.execute(model, inversion, masks, True, 0.1, 0.06, -1, "target", "nearest", 1.0, False).args[0]
    edited = ExactBackgroundNode.execute(edited, inversion, masks, 0.0).args[0]
    pinned, noise, sigmas, latent = EditSetupNode.execute(edited, inversion, 1.0, 7).args
    for sampler in ("euler", "ddim", "dpmpp_2m"):
        one = advanced(pinned, noise, sigmas, latent, sampler)
        # KSampler's own steps and scheduler do not matter; without the pin SamplerCustomAdvanced is as good.
        assert torch.equal(ksampler(pinned, latent, sampler=sampler), one)
        assert torch.equal(ksampler(pinned, latent, 3, "normal", 0.7, sampler), one)
        assert edits.difference(advanced(edited, noise, sigmas, latent, sampler), one) < 1e-6


def test_euler_on_the_setup_is_ddim(model, inversion):
    """With one prompt for everything, the edit without controls is DDIM sampling of the source."""
    from attention_edit.inversion.reconstruct import reconstruct

    pinned, _, _, latent = EditSetupNode.execute(model, inversion, 1.0, 0).args
    expected = reconstruct(model, inversion, 1.0, None).latent
    import nodes

    prompt = inversion.conditioning
    out = nodes.KSampler().sample(pinned, 7, 20, 1.0, "euler", "normal", prompt, prompt, latent, 1.0)[0]["samples"]
    assert edits.difference(out, expected) < 1e-4


def test_denoise_starts_on_the_trajectory(model, inversion):
    assert schedule_from(inversion, 1.0) == tuple(inversion.schedule)
    assert schedule_from(inversion, 0.4) == tuple(inversion.schedule[-3:])
    _, _, sigmas, latent = EditSetupNode.execute(model, inversion, 0.4, 0).args
    start = model.get_model_object("latent_format").process_in(latent["samples"])
    assert edits.difference(start, inversion.at(float(sigmas[0]))) < 1e-6
    with pytest.raises(ValueError, match="raise it"):
        schedule_from(inversion, 0.01)
    with pytest.raises(ValueError, match="at most 1"):
        schedule_from(inversion, 1.5)


def test_a_latent_of_another_size_is_refused(model, inversion):
    pinned, noise, sigmas, _ = EditSetupNode.execute(model, inversion, 1.0, 0).args
    other = {"samples": torch.zeros(1, 4, 8, 8)}
    with pytest.raises(ValueError, match="Edit Setup's latent"):
        advanced(pinned, noise, sigmas, other)


def test_samplers_agree_where_they_should(model, inversion):
    """Without added noise euler is DDIM; multistep takes another way through the mask and ends nearby."""
    control = CPAM(edits.masks(), normal_share=0.0)
    euler, ddim, multistep = (
        edits.run(model, inversion, control, sampler=name) for name in ("euler", "ddim", "dpmpp_2m")
    )
    assert edits.difference(ddim, euler) < 1e-4
    assert 1e-4 < edits.difference(multistep, euler) < 0.5


def test_the_reconstruction_check_reports(model, inversion):
    class Decoder:
        """Stands in for a VAE: weights cannot be here."""

        def decode(self, latent):
            return latent[:, :3].movedim(1, -1).sigmoid()

    image, plot, text = ReconstructNode.execute(model, inversion, Decoder(), 1.0).args
    assert image.shape == (1, tiny.SIZE, tiny.SIZE, 3)
    assert plot.ndim == 4 and plot.shape[-1] == 3 and float(plot.min()) < float(plot.max())
    assert "PSNR" in text and "6 steps" in text
    guided = ReconstructNode.execute(model, inversion, Decoder(), 7.5, tiny.prompt(3)).args[2]
    assert guided != text


def test_inversion_node(model):
    inverted = InvertNode.execute(
        model, {"samples": tiny.latent(1)}, tiny.prompt(5), 6, "leading, offset 1 (diffusers, ddim_uniform)"
    ).args[0]
    assert inverted.offset == 1 and len(inverted.sigmas) == 7
