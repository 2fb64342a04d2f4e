"""The pack's own methods, as `demo/evaluate.py` measures them beside the host's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import comfy.sample
import torch
from machine.pack import pack_module
from measure.methods import METHODS, Method, Setup
from scenes.tasks import Task
from torch import Tensor

engine = pack_module("attention.engine.install")
install, pin = engine.install, engine.pin
cpam_control = pack_module("attention.methods.cpam").CPAM
exact_background = pack_module("attention.methods.background").ExactBackground
Variation = pack_module("attention.engine.variation").Variation
resize = pack_module("attention.masks.cells").resize
edit_masks = pack_module("attention.masks.edit_masks")
make_refinement = pack_module("attention.masks.refinement").make_refinement
read_prompt = pack_module("attention.words.prompt").read_prompt
DDIMInversion = pack_module("inversion.ddim_inversion").DDIMInversion
TASKS = edit_masks.TASKS

_TASK = {
    "recolour": TASKS[0],
    "replace": TASKS[0],
    "retain": TASKS[1],
    "background": TASKS[2],
    "remove": TASKS[3],
    "reshape": TASKS[0],
    "move": TASKS[0],
}


@dataclass(frozen=True)
class Recipe:
    """Settings of a CPAM edit; the defaults are the nodes'.

    Attributes:
        refinement: settings of Refine Mask that are not the paper's; None for no refinement.
        variation: Edit Setup's, where the image may change.
    """

    dilation: float = 0.1
    localized: bool = True
    normal_share: float = 0.1
    resize_rule: str = "nearest"
    end: float = 1.0
    retain_start: float = 0.06
    retain_layer: int | None = None
    key_mask: str = "target"
    exact: bool = False
    exact_start: float = 0.0
    full_prompt: bool = False
    guidance: float | None = None
    refinement: dict[str, Any] | None = None
    variation: float = 0.0


def masks_of(task: Task, recipe: Recipe) -> Any:
    """The task's masks as the Edit Masks node makes them."""
    mask = 1 - task.mask if task.name == "background" else task.mask
    return edit_masks.edit_masks(mask[:, 0], _TASK[task.name], recipe.dilation)


def _refinement(setup: Setup, prompts: list[str], how: dict[str, Any]) -> Any:
    """Mask refinement by all words of the prompts, which must stand at the same tokens."""
    found = [make_refinement(read_prompt(setup.clip, prompt), "", **how) for prompt in dict.fromkeys(prompts)]
    if any(other.columns != found[0].columns for other in found):
        raise ValueError("The prompts of a batch have their words at different tokens; refine them one by one.")
    return found[0]


def cpam(setup: Setup, task: Task, recipe: Recipe) -> Tensor:
    """Invert the sources with the empty prompt and edit them, as the shipped workflows do."""
    inversion = inverted(setup, setup.encode(task.source))
    model, changed = with_cpam(setup, task, recipe, inversion)
    varied = None
    if recipe.variation:
        cells = resize(changed, inversion.latents.shape[-2:], "any")[:, None]
        varied = Variation(recipe.variation, setup.seed, cells)
    model = pin(model, inversion, tuple(inversion.schedule), varied)
    return setup.decode(sampled(setup, model, task, recipe, inversion))


def inverted(setup: Setup, latents: Tensor) -> Any:
    """The INVERSION of latents (B, 4, h, w) with the empty prompt."""
    return DDIMInversion(setup.steps)(setup.model, {"samples": latents}, setup.text([""])).inversion


def with_cpam(setup: Setup, task: Task, recipe: Recipe, inversion: Any) -> tuple[Any, Tensor]:
    """The model with a recipe's edit of a task on it, and where it may change the images (B, H, W)."""
    masks = masks_of(task, recipe)
    if recipe.refinement is not None:
        masks = masks.refined(_refinement(setup, _prompts(task, recipe), recipe.refinement))
    control = cpam_control(
        masks,
        retain_start=recipe.retain_start,
        retain_layer=recipe.retain_layer,
        key_mask=recipe.key_mask,
        normal_share=recipe.normal_share,
        localized=recipe.localized,
        resize_rule=recipe.resize_rule,
        end=recipe.end,
    )
    model = install(setup.model, control, inversion)
    if recipe.exact:
        model = install(model, exact_background(masks.changed, recipe.exact_start), inversion)
    return model, masks.changed


def sampled(setup: Setup, model: Any, task: Task, recipe: Recipe, inversion: Any) -> Tensor:
    """The latents (B, 4, h, w) that the host's sampler ends with on a pinned model."""
    start = torch.zeros_like(inversion.latents[0])
    return comfy.sample.sample(
        model,
        start,
        setup.steps,
        setup.guidance if recipe.guidance is None else recipe.guidance,
        setup.sampler,
        setup.scheduler,
        setup.conditioned(setup.text(_prompts(task, recipe))),
        setup.conditioned(setup.text([""])),
        start,
        disable_pbar=True,
        seed=setup.seed,
    )


def _prompts(task: Task, recipe: Recipe) -> list[str]:
    return task.full_prompts if recipe.full_prompt else task.local_prompts


def planned_rows(recipe: Recipe, steps: int) -> float:
    """UNet rows per image: inversion, both halves of guidance, and the source while CPAM acts.

    The step from timestep 0 to 0 is left out, so 50 steps are 49 calls.
    """
    calls = steps - 1
    return 3 * calls + min(calls, round(recipe.end * steps))


def method(name: str, recipe: Recipe) -> Method:
    """A recipe as a method of the tables."""
    return Method(name, lambda setup, task: cpam(setup, task, recipe), lambda steps: planned_rows(recipe, steps))


PAPER = Recipe()
SHIPPED = {
    "CPAM": PAPER,
    "CPAM, exact background": replace(PAPER, exact=True),
}
"""What users get: the paper's settings, bare and behind Exact Background."""
ABLATIONS = {
    "CPAM, no normal layers": replace(PAPER, normal_share=0.0),
    "CPAM, masks by majority": replace(PAPER, resize_rule="majority"),
    "CPAM, masks by any part": replace(PAPER, resize_rule="any"),
    "CPAM, not localized": replace(PAPER, localized=False),
    "CPAM, full caption": replace(PAPER, full_prompt=True),
    "CPAM, dilation 0.3": replace(PAPER, dilation=0.3),
    "CPAM, first half only": replace(PAPER, end=0.5),
    "CPAM, guidance 1.5": replace(PAPER, guidance=1.5),
    "CPAM, guidance 7.5": replace(PAPER, guidance=7.5),
    "exact background from 0.5": replace(PAPER, exact=True, exact_start=0.5),
    "exact background, no CPAM": replace(PAPER, exact=True, end=0.0),
}
"""One setting changed at a time, to see what it does."""


VARIATIONS = {
    "CPAM": PAPER,
    "CPAM, variation 0.25": replace(PAPER, variation=0.25),
    "CPAM, variation 0.5": replace(PAPER, variation=0.5),
    "CPAM, variation 1": replace(PAPER, variation=1.0),
}
"""Fresh noise under the mask, by its share: none, some, and all of it."""
VARIED = ("recolour", "replace")
"""The tasks in which they are measured."""


def variations() -> list[Method]:
    """CPAM with shares of fresh noise, as methods of the tables."""
    return [method(name, recipe) for name, recipe in VARIATIONS.items()]


def register(ablations: bool = False) -> None:
    """Add the pack's methods to the table."""
    for name, recipe in {**SHIPPED, **(ABLATIONS if ablations else {})}.items():
        METHODS[name] = method(name, recipe)
