"""Local Blend on the demo transformer: the object of the named word is recoloured, and the rest is the photograph's."""

from __future__ import annotations

import torch
from attention_edit.attention.engine.install import install, pin
from attention_edit.attention.methods.local_blend import LocalBlend
from attention_edit.attention.methods.p2p import P2P
from attention_edit.attention.words.prompt import read_prompt
from attention_edit.inversion.ddim_inversion import DDIMInversion
from bundle import transformer, world
from scenes import metrics, reader
from tiny_joint import joint_sample

STEPS, GUIDANCE = 20, 4.0


def test_words_keep_the_background_without_a_mask() -> None:
    """Beside Prompt-to-Prompt alone, with the defaults of both: nothing says where the object is but its word."""
    model, clip, vae = transformer.load_demo_transformer()
    scene = world.demo_scene(1, 1)
    wanted = scene.with_object(0, colour=(scene.colour[:, 0] + 2) % len(world.COLOURS))
    captions = world.full_captions(scene)[0], world.full_captions(wanted)[0]
    image, mask = world.render(scene), metrics.dilate(world.masks(scene)[:, :1], 4)
    shape = world.SHAPES[int(scene.shape[0, 0])]
    with torch.inference_mode():
        source, target, empty = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (*captions, ""))
        pairs = zip(captions, (source, target), strict=True)
        words = [read_prompt(clip, text).encoded(given[0][0]) for text, given in pairs]
        latent = {"samples": vae.encode(image.movedim(1, -1))}
        inversion = DDIMInversion(STEPS, flow_iterations=2)(model, latent, source).inversion
        zeros, alone, near = torch.zeros_like(latent["samples"]), vae.decode(latent["samples"]).movedim(-1, 1), []
        edited = install(model, P2P(*words), inversion)
        for edit in (edited, install(edited, LocalBlend(*words, [shape], [shape]), inversion)):
            pinned = pin(edit, inversion, tuple(inversion.schedule))
            out = joint_sample(pinned, target, empty, zeros, zeros, torch.tensor([1.0, 0.0]), GUIDANCE)
            picture = vae.decode(out).movedim(-1, 1)
            near.append(float(metrics.psnr(picture, alone, 1 - metrics.dilate(mask, 16))))
            found = reader.read_inside(picture[0], mask[0, 0] > 0)
            assert found is not None and found.colour == int(wanted.colour[0, 0])
    assert near[1] > near[0] + 6, "less than half the error"
