"""The demo transformer: a scene inverted, and its object recoloured in place."""

from __future__ import annotations

import demo_swap
import pytest
import torch
from attention_edit.attention.engine.install import install, pin
from attention_edit.attention.masks.edit_masks import EditMasks
from attention_edit.attention.methods.background import ExactBackground
from attention_edit.attention.methods.cpam import CPAM
from attention_edit.attention.methods.p2p import P2P
from attention_edit.inversion.ddim_inversion import DDIMInversion
from bundle import transformer, world
from demo_swap import GUIDANCE, STEPS
from scenes import metrics, reader
from tiny_joint import joint_sample


@pytest.fixture(scope="module")
def demo():
    return transformer.load_demo_transformer()


def recoloured(demo, number, cpam=True):
    """A scene's picture, its edit and their latents, the mask, and what the edit should show."""
    model, clip, vae = demo
    scene = world.demo_scene(number, 1)
    wanted = scene.with_object(0, colour=(scene.colour[:, 0] + 2) % len(world.COLOURS))
    image = world.render(scene)
    mask = metrics.dilate(world.masks(scene)[:, :1], 4)[:, 0] > 0

    def prompt(text):
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))

    with torch.inference_mode():
        latent = {"samples": vae.encode(image.movedim(1, -1))}
        inversion = DDIMInversion(STEPS)(model, latent, prompt("")).inversion
        edited = install(model, ExactBackground(mask), inversion)
        if cpam:
            edited = install(edited, CPAM(EditMasks(mask, mask, False, mask)), inversion)
        edited = pin(edited, inversion, tuple(inversion.schedule))
        zeros = torch.zeros_like(latent["samples"])
        positive, sigmas = prompt(world.full_captions(wanted)[0]), torch.tensor([1.0, 0.0])
        out = joint_sample(edited, positive, prompt(""), zeros, zeros, sigmas, GUIDANCE)
        picture = vae.decode(out).movedim(-1, 1)
        alone = vae.decode(latent["samples"]).movedim(-1, 1)
    return latent["samples"], out, alone, picture, mask, wanted


@pytest.mark.parametrize("cpam", [True, False], ids=["CPAM", "Exact Background alone"])
def test_a_recoloured_object_stands_in_its_own_background(demo, cpam):
    before, after, alone, picture, mask, wanted = recoloured(demo, 1, cpam)
    cells = torch.nn.functional.max_pool2d(mask[:, None].float(), 8) > 0
    outside = (~cells).expand_as(before)
    assert torch.allclose(after[outside], before[outside], rtol=1e-6, atol=1e-6)
    far = 1 - metrics.dilate(mask[:, None].float(), 16)
    assert float(metrics.psnr(picture, alone, far)) > 30
    found = reader.read_inside(picture[0], mask[0])
    assert found is not None and found.colour == int(wanted.colour[0, 0])


def test_a_swapped_word_recolours_its_object_and_keeps_the_rest_nearer(demo):
    """Prompt-to-Prompt with the demo's real guidance, beside the same run without it; no mask."""
    with torch.inference_mode():
        swap = demo_swap.swap(demo)
        near = [swap.far(edit) for edit in (install(demo[0], P2P(*swap.words), swap.inversion), demo[0])]
    assert near[0] > near[1]
