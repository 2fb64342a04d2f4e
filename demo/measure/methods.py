"""How to edit a batch of scenes: the host's own ways, and the record that other ways are written down in.

A new way is a function that takes a Setup and a Task and returns images, wrapped in a Method:

    METHODS["mine"] = Method("mine", run=lambda setup, task: ..., evaluations=lambda steps: 4 * steps)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import comfy.model_patcher
import comfy.patcher_extension
import comfy.sample
import comfy.sd
import torch
from scenes import metrics
from scenes.tasks import Task
from torch import Tensor

Conditioning = list[Any]
GUIDANCE = 4.0
"""The scale that suits the demo model best; its workflows have it too."""
INPAINT_GROWTH = 6
"""Pixels by which the host's VAE Encode (for Inpainting) grows a mask unless told otherwise."""
INPAINT_SAMPLER = "lcm"
"""The host's sampler that suits inpainting: it draws new noise in every step, so that what appears under the mask
comes to agree with what is around. On other scenes euler recolours a third fewer."""
_COUNTER = "attention_edit_evaluation"


@dataclass(frozen=True)
class Setup:
    """The host's objects and the sampling settings that all methods share.

    Attributes:
        control: the host's CONTROL_NET with its hint, which acts on all that is sampled; None for none.
    """

    model: comfy.model_patcher.ModelPatcher
    clip: comfy.sd.CLIP
    vae: comfy.sd.VAE
    steps: int = 25
    guidance: float = GUIDANCE
    sampler: str = "euler"
    scheduler: str = "normal"
    seed: int = 0
    control: Any = None

    def text(self, prompts: list[str]) -> Conditioning:
        """The host's CONDITIONING for one prompt per image."""
        clip: Any = self.clip  # its methods return one of several things, as asked
        states = {prompt: clip.encode_from_tokens(clip.tokenize(prompt)) for prompt in dict.fromkeys(prompts)}
        return [[torch.cat([states[prompt] for prompt in prompts]), {}]]

    def conditioned(self, given: Conditioning) -> Conditioning:
        """A CONDITIONING with the setup's control on it, as the host's Apply ControlNet puts it there."""
        if self.control is None:
            return given
        return [[states, {**more, "control": self.control, "control_apply_to_uncond": False}] for states, more in given]

    def encode(self, images: Tensor) -> Tensor:
        """Latents (B, 4, S/8, S/8) of images (B, 3, S, S) in 0..1."""
        return self.vae.encode(images.movedim(1, -1).contiguous())

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, S, S) in 0..1 of latents (B, 4, S/8, S/8), on the CPU."""
        return self.vae.decode(latents).movedim(-1, 1).float().cpu().clamp(0, 1)

    def sample(self, prompts: list[str], latents: Tensor, denoise: float = 1.0, mask: Tensor | None = None) -> Tensor:
        """What the host's KSampler node makes of latents (B, 4, H, W).

        Args:
            prompts: one per image; the negative prompt is empty.
            denoise: 0..1, how much of the noise schedule is used.
            mask: (B, 1, S, S) of 0..1, where to draw (the host's latent noise mask).
        """
        return comfy.sample.sample(
            self.model,
            comfy.sample.prepare_noise(latents, self.seed),
            self.steps,
            self.guidance,
            self.sampler,
            self.scheduler,
            self.conditioned(self.text(prompts)),
            self.conditioned(self.text([""] * len(prompts))),
            latents,
            denoise=denoise,
            noise_mask=mask,
            disable_pbar=True,
            seed=self.seed,
        )


class Editable(Protocol):
    """What the host's own ways need of a task: images (B, 3, S, S), captions of the results, masks (B, 1, S, S)."""

    @property
    def source(self) -> Tensor: ...

    @property
    def full_prompts(self) -> list[str]: ...

    @property
    def mask(self) -> Tensor: ...


@dataclass(frozen=True)
class Method:
    """A way to edit."""

    name: str
    run: Callable[[Setup, Task], Tensor]
    """Edited images (B, 3, S, S) in 0..1 of a task's source images."""
    evaluations: Callable[[int], float]
    """Planned UNet row-evaluations per image, given the number of steps; guidance takes two rows per step."""


class RowCounter:
    """Counts the rows that go through a UNet."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, executor: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The host's DIFFUSION_MODEL wrapper."""
        self.rows += x.shape[0]
        return executor(x, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> RowCounter:
        # The host copies what is attached to a model whenever the model is cloned; there is but one count.
        return self


@contextmanager
def counted(setup: Setup) -> Iterator[tuple[Setup, RowCounter]]:
    """The same setup with a model whose rows are counted."""
    counter, model = RowCounter(), setup.model.clone()
    kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
    model.add_wrapper_with_key(kind, _COUNTER, counter)
    yield replace(setup, model=model), counter


def batches(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `count` entries."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def generate(setup: Setup, prompts: list[str], size: int) -> Tensor:
    """Images (B, 3, size, size) in 0..1 from text alone: the plain run that costs are compared with."""
    return setup.decode(setup.sample(prompts, torch.zeros(len(prompts), 4, size // 8, size // 8)))


def round_trip(setup: Setup, task: Task) -> Tensor:
    """No edit: what the autoencoder alone does to the source."""
    return setup.decode(setup.encode(task.source))


def image_to_image(setup: Setup, task: Editable, strength: float) -> Tensor:
    """The source, noised up to a strength in 0..1 and denoised with the edited scene's caption."""
    return setup.decode(setup.sample(task.full_prompts, setup.encode(task.source), strength))


def inpaint(setup: Setup, task: Editable, growth: int = INPAINT_GROWTH) -> Tensor:
    """Everything under the mask drawn anew with the edited scene's caption, the rest kept."""
    mask = metrics.dilate(task.mask, growth)
    stochastic = replace(setup, sampler=INPAINT_SAMPLER)
    return setup.decode(stochastic.sample(task.full_prompts, setup.encode(task.source), mask=mask))


def _two_per_step(steps: int) -> float:
    return 2 * steps


def img2img(strength: float) -> Method:
    """Image-to-image at a strength in 0..1 as a method of the table."""
    return Method(f"img2img {strength}", partial(image_to_image, strength=strength), _two_per_step)


def _stock() -> list[Method]:
    methods = [Method("autoencoder", round_trip, lambda steps: 0)]
    methods += [img2img(tenth / 10) for tenth in range(3, 11)]
    return [*methods, Method("inpaint", inpaint, _two_per_step)]


METHODS: dict[str, Method] = {method.name: method for method in _stock()}
"""All methods by name, in the order of the table."""
