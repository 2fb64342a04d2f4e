"""How far each inversion of a rectified flow leads from its image and back: `evaluate.py --flow-inversions`.

The relative error of the latent after inversion and sampling at guidance 1, both in so many steps: by the inversion's
own steps, and by the host's samplers, which edits run with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.samplers
import torch
from machine.pack import pack_module
from measure import report
from measure.methods import Setup
from scenes import tasks
from torch import Tensor
from tqdm import tqdm

DDIMInversion = pack_module("inversion.ddim_inversion").DDIMInversion
FLOW_SOLVERS = pack_module("inversion.flow_solvers").FLOW_SOLVERS
solve = pack_module("inversion.flow_solvers").solve
walk_inversion = pack_module("inversion.walk").walk_inversion
cfg_guider = pack_module("host.guider").cfg_guider
prediction_of = pack_module("host.models").prediction_of

STEPS = (10, 20, 28, 50)
OWN = "its own steps"


@dataclass(frozen=True)
class FlowWay:
    """One way there, and the ways back that are measured.

    Attributes:
        settings: of the pack's DDIMInversion. back: OWN, or the host's samplers by name.
    """

    settings: dict[str, Any]
    back: tuple[str, ...] = ("euler",)


WAYS = {
    "Euler": FlowWay({"flow_iterations": 1}),
    "fixed point, 3 iterations": FlowWay({"flow_iterations": 3}),
    "fixed point, 10 iterations": FlowWay({"flow_iterations": 10}),
    "Uni-Inv": FlowWay({"flow_solver": "Uni-Inv"}),
    "RF-Solver": FlowWay({"flow_solver": "RF-Solver"}, (OWN, "heun", "euler")),
    "FireFlow": FlowWay({"flow_solver": "FireFlow"}, (OWN, "heun", "euler")),
}


@dataclass(frozen=True)
class RoundTrip:
    """How one inversion was taken back.

    Attributes:
        back: what sampled. steps: there and back.
        error: |z' - z| / |z| of the image's latents z, over all images.
        forward: evaluations per image of the inversion, counted.
    """

    inversion: str
    back: str
    steps: int
    error: float
    forward: float


def _taken_back(setup: Setup, inversion: Any, back: str, solver: Any) -> Tensor:
    """The latents (B, C, h, w), in the network's scale, that a way back ends on."""
    sigmas = inversion.schedule
    if back == OWN:

        def walk(predict: Any, noise: Tensor) -> list[Tensor]:
            return solve(solver.sample, predict, noise, sigmas)

        return walk_inversion(setup.model, walk, inversion, sigmas, None, 1.0)[-1]
    guider = cfg_guider(setup.model, inversion.conditioning, None, 1.0)
    noise = inversion.latents[-1] / sigmas[0]
    sampler, levels = comfy.samplers.sampler_object(back), torch.tensor(sigmas)
    out = guider.sample(noise, torch.zeros_like(noise), sampler, levels, disable_pbar=True, seed=0)
    latent_format: Any = setup.model.get_model_object("latent_format")
    return latent_format.process_in(out.cpu())


def measure(setup: Setup, count: int, all_steps: Sequence[int] = STEPS) -> Iterator[RoundTrip]:
    """Every way on held-out scenes, with their captions.

    Raises:
        ValueError: the model is no rectified flow.
    """
    if prediction_of(setup.model) != "flow":
        raise ValueError("Add --model demo/bundle/transformer.safetensors: this model is no rectified flow.")
    task = tasks.make_task("recolour", count)
    latents, prompt = setup.encode(task.source), setup.text(task.source_captions)
    for name, way in tqdm(WAYS.items(), desc="inversions of flows", leave=False):
        for steps in all_steps:
            made = DDIMInversion(steps, **way.settings)(setup.model, {"samples": latents}, prompt)
            image, solver = made.inversion.latents[0], FLOW_SOLVERS.get(name)
            for back in way.back:
                far = _taken_back(setup, made.inversion, back, solver) - image
                yield RoundTrip(name, back, steps, float(far.norm() / image.norm()), made.cost.forward / count)


def table(rows: Sequence[RoundTrip]) -> str:
    """A line for each way there and back, a column for each number of steps, as Markdown."""
    all_steps = list(dict.fromkeys(row.steps for row in rows))
    header = ["inversion", "sampled by", *(f"{steps} steps" for steps in all_steps), f"evaluations at {all_steps[-1]}"]
    cells: list[list[str]] = []
    for way in dict.fromkeys((row.inversion, row.back) for row in rows):
        found = [row for row in rows if (row.inversion, row.back) == way]
        cells.append([*way, *(f"{row.error:.4f}" for row in found), f"{found[-1].forward:g}"])
    return report.markdown(header, cells)
