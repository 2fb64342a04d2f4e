"""Words' maps of the demo transformer: where its captions' objects really are. Run with -s to see the figures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_edit.attention.engine.install import install
from attention_edit.attention.maps.heat import HeatOptions, words_mask
from attention_edit.attention.maps.recorder import recorder
from attention_edit.attention.words.prompt import read_prompt
from attention_edit.host.families import family_of
from attention_edit.inversion.ddim_inversion import DDIMInversion
from bundle import transformer, world
from scenes import metrics
from torch import Tensor

SEED, STEPS = 700_000_000, 8


def recorded(demo: Any, scene: world.Scenes) -> tuple[Any, Any]:
    """Prompt and maps of a scene's inversion with its caption."""
    model, clip, vae = demo
    caption = world.full_captions(scene)[0]
    prompt = read_prompt(clip, caption)
    made = recorder(prompt, family_of(model), (1,), (1,), 0.0, 1.0)
    with torch.inference_mode():
        latent = {"samples": vae.encode(world.render(scene).movedim(1, -1))}
        text = clip.encode_from_tokens_scheduled(clip.tokenize(caption))
        DDIMInversion(STEPS, flow_iterations=1)(install(model, made), latent, text)
    return prompt, made.maps.recording


def by_chance(mask: Tensor, truth: Tensor) -> float:
    """Overlap that a mask of this size has where it lies anywhere: shares p and q meet in p q of the picture."""
    p, q = float(mask.float().mean()), float(truth.float().mean())
    return p * q / (p + q - p * q)


@pytest.mark.parametrize("objects", [1, 2])
def test_a_words_map_lies_on_its_object(objects: int) -> None:
    """Mask from Words by Otsu, with nothing set, on scenes that were held out of training."""
    demo = transformer.load_demo_transformer()
    scenes = world.sample_scenes(4, SEED, objects=objects, held_out=True)
    found: list[tuple[float, float]] = []
    for i in range(4):
        scene = scenes[i : i + 1]
        prompt, recording = recorded(demo, scene)
        shapes = [world.SHAPES[shape] for shape in scene.shape[0].tolist() if shape != world.NOTHING]
        for place, shape in enumerate(shapes):
            at = prompt.find(shape, shapes[:place].count(shape) + 1)
            for sharpen in (0, 1):
                mask, _ = words_mask(recording, {shape: at}, "Otsu", options=HeatOptions(sharpen=sharpen))
                truth = world.masks(scene)[0, place : place + 1]
                found.append((float(metrics.overlap(mask.float(), truth)), by_chance(mask, truth)))
                print(
                    f"{prompt.text}: {shape} #{place + 1}, sharpened {sharpen} times, IoU %.2f, by chance %.2f"
                    % found[-1]
                )
    for sharpen in (0, 1):
        overlap, chance = torch.tensor(found[sharpen::2]).mean(0).tolist()
        print(f"Scenes of {objects}, sharpened {sharpen} times: mean IoU {overlap:.3f}, by chance {chance:.3f}")
        assert overlap > chance
