"""How an edit without a mask is measured on the demo world: the files of measure/judged/ are made of this.

Prompts are captions of the whole edited scene; a method has its node's settings, on the tasks that its paper claims.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.sample
import torch
from machine.pack import pack_module
from measure.methods import Method, Setup
from scenes.tasks import Task
from torch import Tensor

engine = pack_module("attention.engine.install")
install, pin = engine.install, engine.pin
read_prompt = pack_module("attention.words.prompt").read_prompt
DDIMInversion = pack_module("inversion.ddim_inversion").DDIMInversion

Judged = list[tuple[Method, tuple[str, ...]]]
"""Methods with the tasks that they are measured on."""
SHAPES_AND_COLOURS = ("recolour", "replace", "background")
SHAPES = ("replace", "retain")


def sample_edited(setup: Setup, model: Any, inversion: Any, positive: Any) -> Tensor:
    """Images of an edited model from the inverted noise."""
    model = pin(model, inversion, tuple(inversion.schedule))
    start = torch.zeros(inversion.latents.shape[1:])
    edited = comfy.sample.sample(
        model,
        start,
        setup.steps,
        setup.guidance,
        setup.sampler,
        setup.scheduler,
        setup.conditioned(positive),
        setup.conditioned(setup.text([""])),
        start,
        disable_pbar=True,
        seed=setup.seed,
    )
    return setup.decode(edited)


def invert(setup: Setup, task: Task, prompts: Sequence[str]) -> Any:
    latents = {"samples": setup.encode(task.source)}
    return DDIMInversion(setup.steps)(setup.model, latents, setup.text(list(prompts))).inversion


def inject(setup: Setup, task: Task, control: Any) -> Tensor:
    """Edit with a control that needs no caption: the source is inverted with the empty prompt."""
    inversion = invert(setup, task, [""])
    model = setup.model if control is None else install(setup.model, control, inversion)
    return sample_edited(setup, model, inversion, setup.text(task.full_prompts))


@dataclass(frozen=True)
class Captions:
    """One image's two captions, read for their words."""

    source: Any
    target: Any

    def changed(self) -> tuple[list[str], list[str]]:
        """Words of either caption that the other has not."""
        before, after = self.source.words, self.target.words
        return [w for w in before if w not in after], [w for w in after if w not in before]


Text = Callable[[Captions, Any, Any], Any]
"""(captions, the source's CONDITIONING, the target's) to the edit's."""


def captioned(setup: Setup, task: Task, controls: Callable[[Captions], list[Any]], text: Text | None = None) -> Tensor:
    """Edit image by image with controls that read both captions.

    Args:
        text: makes the edit's CONDITIONING of the captions, the source's and the target's; None takes the target's.
    """
    images = []
    for i in range(len(task)):
        one = task[i : i + 1]
        captions = Captions(
            read_prompt(setup.clip, one.source_captions[0]), read_prompt(setup.clip, one.full_prompts[0])
        )
        inversion, model = invert(setup, one, one.source_captions), setup.model
        for control in controls(captions):
            model = install(model, control, inversion)
        positive = setup.text(one.full_prompts)
        if text is not None:
            positive = text(captions, setup.text(one.source_captions), positive)
        images.append(sample_edited(setup, model, inversion, positive))
    return torch.cat(images)


def rows(steps: int, source: float) -> float:
    """Inversion and both halves of guidance, and the source's rows; 50 steps are 49 calls."""
    calls = steps - 1
    return 3 * calls + max(0.0, min(calls, source))


def method(name: str, control: Any, source: Callable[[int], float]) -> Method:
    return Method(name, lambda setup, task: inject(setup, task, control), lambda steps: rows(steps, source(steps)))
