"""The demo transformer's first scene of one object, whose caption's colour is swapped, and what an edit makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from attention_edit.attention.engine.install import pin
from attention_edit.attention.words.prompt import Prompt, read_prompt
from attention_edit.inversion.ddim_inversion import DDIMInversion
from attention_edit.inversion.record import Inversion
from bundle import world
from scenes import metrics, reader
from tiny_joint import joint_sample
from torch import Tensor

STEPS, GUIDANCE = 20, 4.0


@dataclass(frozen=True, eq=False)
class Swap:
    """The scene inverted with its caption.

    Attributes:
        shape, colour: of the object; the colour is the wanted one's number.
        inversion: of the scene. words: the captions before and after. texts: the second one and an empty one, encoded.
        vae: the demo's. alone: what it makes of the scene (1, 3, S, S). mask: the object (1, 1, S, S), grown by 4.
    """

    shape: str
    colour: int
    inversion: Inversion
    words: tuple[Prompt, Prompt]
    texts: tuple[Any, Any]
    vae: Any
    alone: Tensor
    mask: Tensor

    def far(self, edited: Any) -> float:
        """Sample a model with an edit on it: dB to the scene away from the object, which must be recoloured."""
        pinned = pin(edited, self.inversion, tuple(self.inversion.schedule))
        zeros = torch.zeros_like(self.inversion.latents[0])
        out = joint_sample(pinned, *self.texts, zeros, zeros, torch.tensor([1.0, 0.0]), GUIDANCE)
        picture = self.vae.decode(out).movedim(-1, 1)
        found = reader.read_inside(picture[0], self.mask[0, 0] > 0)
        assert found is not None and found.colour == self.colour
        return float(metrics.psnr(picture, self.alone, 1 - metrics.dilate(self.mask, 16)))


def swap(demo: tuple[Any, Any, Any], flow_iterations: int = 3) -> Swap:
    """Invert the scene with the demo transformer: its model, clip and vae."""
    model, clip, vae = demo
    scene = world.demo_scene(1, 1)
    wanted = scene.with_object(0, colour=(scene.colour[:, 0] + 2) % len(world.COLOURS))
    captions = world.full_captions(scene)[0], world.full_captions(wanted)[0]
    source, target, empty = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (*captions, ""))
    before, after = (
        read_prompt(clip, text).encoded(given[0][0]) for text, given in zip(captions, (source, target), strict=True)
    )
    latent = {"samples": vae.encode(world.render(scene).movedim(1, -1))}
    return Swap(
        shape=world.SHAPES[int(scene.shape[0, 0])],
        colour=int(wanted.colour[0, 0]),
        inversion=DDIMInversion(STEPS, flow_iterations=flow_iterations)(model, latent, source).inversion,
        words=(before, after),
        texts=(target, empty),
        vae=vae,
        alone=vae.decode(latent["samples"]).movedim(-1, 1),
        mask=metrics.dilate(world.masks(scene)[:, :1], 4),
    )
