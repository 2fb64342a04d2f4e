"""The methods that put the source's features into the edit, as `demo/evaluate.py --injection` measures them.

Each with its node's settings, on the tasks that its paper claims; prompts are captions of the whole edited scene.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.sample
import torch
from machine.pack import pack_module
from measure import report
from measure.methods import METHODS, Method, Setup
from scenes.tasks import Task, make_task
from torch import Tensor

engine = pack_module("attention.engine.install")
install, pin = engine.install, engine.pin
rules = pack_module("attention.engine.layers")
fpe_control = pack_module("attention.methods.fpe").FPE
masactrl_control = pack_module("attention.methods.masactrl").MasaCtrl
pnp_control = pack_module("attention.methods.pnp").PnP
p2p_control = pack_module("attention.methods.p2p").P2P
local_blend_control = pack_module("attention.methods.local_blend").LocalBlend
embctrl = pack_module("attention.methods.embctrl").embctrl
read_prompt = pack_module("attention.words.prompt").read_prompt
DDIMInversion = pack_module("inversion.ddim_inversion").DDIMInversion

SHAPES_AND_COLOURS = ("recolour", "replace", "background")
SHAPES = ("replace", "retain")


def _sample(setup: Setup, model: Any, inversion: Any, positive: Any) -> Tensor:
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
        positive,
        setup.text([""]),
        start,
        disable_pbar=True,
        seed=setup.seed,
    )
    return setup.decode(edited)


def _invert(setup: Setup, task: Task, prompts: Sequence[str]) -> Any:
    latents = {"samples": setup.encode(task.source)}
    return DDIMInversion(setup.steps)(setup.model, latents, setup.text(list(prompts))).inversion


def inject(setup: Setup, task: Task, control: Any) -> Tensor:
    """Edit with a control that needs no caption: the source is inverted with the empty prompt."""
    inversion = _invert(setup, task, [""])
    model = setup.model if control is None else install(setup.model, control, inversion)
    return _sample(setup, model, inversion, setup.text(task.full_prompts))


@dataclass(frozen=True)
class Captions:
    """One image's two captions, read for their words."""

    source: Any
    target: Any

    def changed(self) -> tuple[list[str], list[str]]:
        """Words of either caption that the other has not."""
        before, after = self.source.words, self.target.words
        return [w for w in before if w not in after], [w for w in after if w not in before]


def captioned(setup: Setup, task: Task, controls: Callable[[Captions], list[Any]], emb: bool = False) -> Tensor:
    """Edit image by image with controls that read both captions."""
    images = []
    for i in range(len(task)):
        one = task[i : i + 1]
        captions = Captions(
            read_prompt(setup.clip, one.source_captions[0]), read_prompt(setup.clip, one.full_prompts[0])
        )
        inversion, model = _invert(setup, one, one.source_captions), setup.model
        for control in controls(captions):
            model = install(model, control, inversion)
        positive = setup.text(one.full_prompts)
        if emb:
            positive = embctrl(captions.source, setup.text(one.source_captions), captions.target, positive)
        images.append(_sample(setup, model, inversion, positive))
    return torch.cat(images)


def _p2p(captions: Captions) -> list[Any]:
    return [p2p_control(captions.source, captions.target)]


def _p2p_blend(captions: Captions) -> list[Any]:
    before, after = captions.changed()
    found = _p2p(captions)
    if before and after:
        found.append(local_blend_control(captions.source, captions.target, before, after))
    return found


def _rows(steps: int, source: float) -> float:
    """Inversion and both halves of guidance, and the source's rows; 50 steps are 49 calls."""
    calls = steps - 1
    return 3 * calls + max(0.0, min(calls, source))


def _method(name: str, control: Any, source: Callable[[int], float]) -> Method:
    return Method(name, lambda setup, task: inject(setup, task, control), lambda steps: _rows(steps, source(steps)))


_TABLE: list[tuple[Method, tuple[str, ...]]] = [
    (_method("DDIM inversion alone", None, lambda steps: 0), SHAPES_AND_COLOURS),
    (_method("FPE", fpe_control(), lambda steps: round(0.8 * steps)), SHAPES_AND_COLOURS),
    (
        _method("FPE, layers 4 to 14", fpe_control(layers=rules.PAPER), lambda steps: round(0.8 * steps)),
        SHAPES_AND_COLOURS,
    ),
    (_method("MasaCtrl", masactrl_control(), lambda steps: steps - 1 - round(0.08 * steps)), SHAPES),
    (_method("Plug-and-Play", pnp_control(), lambda steps: round(0.8 * steps)), SHAPES_AND_COLOURS),
    (
        Method(
            "Prompt-to-Prompt",
            lambda setup, task: captioned(setup, task, _p2p),
            lambda steps: _rows(steps, int(0.8 * (steps + 1) + 1e-9)),
        ),
        SHAPES_AND_COLOURS,
    ),
    (
        Method(
            "Prompt-to-Prompt, local blend",
            lambda setup, task: captioned(setup, task, _p2p_blend),
            lambda steps: _rows(steps, steps),
        ),
        SHAPES_AND_COLOURS,
    ),
    (
        Method(
            "EmbCtrl",
            lambda setup, task: captioned(setup, task, lambda _: [], emb=True),
            lambda steps: _rows(steps, 0),
        ),
        ("recolour", "background"),
    ),
]
NAMES = tuple(method.name for method, _ in _TABLE)
CLAIMS = {method.name: tasks for method, tasks in _TABLE}
"""The tasks that a method is measured on; others of the table are measured on all."""

STUDY = {
    "none": None,
    "all": rules.ALL,
    "4 to 14 (paper)": rules.PAPER,
    "up to 32 x 32": rules.RESOLUTION,
}
"""FPE's layer study: which layers take the source's maps."""


def register() -> None:
    """Add the methods to the table."""
    for method, _ in _TABLE:
        METHODS[method.name] = method


def layer_study(setup: Setup, count: int, folder: Path) -> Path:
    """FPE with different layers on recoloured scenes, as one figure.

    Returns:
        the figure's path.
    """
    task = make_task("recolour", count)
    columns = {"before": task.source, "truth": task.truth}
    for name, layers in STUDY.items():
        control = None if layers is None else replace(fpe_control(), layers=layers)
        columns[name] = inject(setup, task, control)
    labels = [f"{a} | {b}" for a, b in zip(task.source_captions, task.full_prompts, strict=True)]
    path = folder / "fpe layers.png"
    report.save_sheet(path, columns, labels)
    return path
