"""Solvers of a rectified flow, dx = v(x, sigma) dsigma: the steps by which an inversion goes from level to level.

RF-Solver and FireFlow follow the flow itself to second order, from the image to noise and back by the same rule: what
they leave falls with the square of the step, Euler's with the step. To be taken back they want a sampler of second
order (the host's heun and dpm_2 are); euler from their noise drifts by its own error, as it does from a drawn noise.
Uni-Inv turns the sampler's own Euler steps round, as the fixed point does (`fixed_point`), so that it wants euler.
Whichever it is, edits read the stored trajectory by sigma, which no sampler changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from .steps import Predict

FlowStep = Callable[[Predict, Tensor, tuple[float, float], Tensor | None], tuple[Tensor, Tensor]]
"""From the network, x (B, C, h, w), sigmas (from, to), and the velocity that the step before has handed on (None ahead
of the first): x at the second level, and the velocity for the next step."""

LEAST_TOLD = 1e-3
"""The least sigma that the network is told. At 0 the host's denoised latent, x - sigma v, holds no velocity; in
float32 its relative error is 2e-5 here and 2e-4 at a tenth of it. The image's own velocity only ever leads to the
middle of the first step, where this makes a difference of 1e-3 h^2."""


def _velocity(predict: Predict, x: Tensor, sigma: float) -> Tensor:
    return predict(x, max(sigma, LEAST_TOLD))


def euler_step(
    predict: Predict, x: Tensor, levels: tuple[float, float], before: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Euler's step, as the host's sampler takes it: with the velocity where it comes from. First order."""
    start, end = levels
    v = _velocity(predict, x, start)
    return x + (end - start) * v, v


def rf_solver_step(
    predict: Predict, x: Tensor, levels: tuple[float, float], before: Tensor | None
) -> tuple[Tensor, Tensor]:
    """RF-Solver (Wang et al. 2024, Taming Rectified Flow for Inversion and Editing): second-order Taylor expansion.

    x' = x + h v + h^2/2 v', with the derivative v' along the flow from a second velocity half a step on, as the
    authors' code takes it. Two evaluations; by its algebra it is the midpoint rule.
    """
    start, end = levels
    h = end - start
    v = _velocity(predict, x, start)
    middle = _velocity(predict, x + h / 2 * v, start + h / 2)
    derivative = (middle - v) / (h / 2)
    return x + h * v + h * h / 2 * derivative, middle


def fireflow_step(
    predict: Predict, x: Tensor, levels: tuple[float, float], before: Tensor | None
) -> tuple[Tensor, Tensor]:
    """FireFlow (Deng et al. 2024): the midpoint rule that finds the middle with the last step's middle velocity.

    That velocity is off by the order of the step, so the middle is by its square: second order, at one evaluation a
    step. Only the first step has a velocity of its own evaluated.
    """
    start, end = levels
    h = end - start
    v = _velocity(predict, x, start) if before is None else before
    middle = _velocity(predict, x + h / 2 * v, start + h / 2)
    return x + h * middle, middle


def uni_inv_step(
    predict: Predict, x: Tensor, levels: tuple[float, float], before: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Uni-Inv (Jiao et al. 2025, UniEdit-Flow): the velocity at the place that the last step's velocity leads to.

    Euler's step back from x' takes the velocity at x'; here it is taken at a prediction of x', off by the square of
    the step. The first step predicts with no velocity, as in the paper. One evaluation a step.
    """
    start, end = levels
    guess = x if before is None else x + (end - start) * before
    v = _velocity(predict, guess, end)
    return x + (end - start) * v, v


def solve(step: FlowStep, predict: Predict, start: Tensor, sigmas: Sequence[float]) -> list[Tensor]:
    """The latents of every level that a solver visits.

    Args:
        start: (B, C, h, w) on sigmas[0].
        sigmas: levels, ascending from an image or descending from noise.

    Returns:
        len(sigmas) latents (B, C, h, w).
    """
    visited, velocity = [start], None
    for levels in pairwise(sigmas):
        x, velocity = step(predict, visited[-1], levels, velocity)
        visited.append(x)
    return visited


@dataclass(frozen=True)
class FlowSolver:
    """A way to invert a rectified flow, and the sampling that it is made for.

    Attributes:
        name: the paper's.
        invert, sample: the steps from image to noise, and those that take them back.
        each, once: evaluations of each step, and beside them.
        samplers: the host's samplers that take it back.
    """

    name: str
    invert: FlowStep
    sample: FlowStep
    each: int
    once: int
    samplers: str

    def calls(self, steps: int) -> int:
        """Evaluations of an inversion."""
        return self.each * steps + self.once


RF_SOLVER = FlowSolver("RF-Solver", rf_solver_step, rf_solver_step, 2, 0, "heun or dpm_2")
FIREFLOW = FlowSolver("FireFlow", fireflow_step, fireflow_step, 1, 1, "heun or dpm_2")
UNI_INV = FlowSolver("Uni-Inv", uni_inv_step, euler_step, 1, 0, "euler")
FLOW_SOLVERS = {solver.name: solver for solver in (RF_SOLVER, FIREFLOW, UNI_INV)}
FIXED_POINT = "Euler, fixed point"
"""The default beside them: `fixed_point.refine`."""
SOLVER_NAMES = (FIXED_POINT, *FLOW_SOLVERS)


def flow_solver_of(name: str) -> FlowSolver | None:
    """A solver by its name; None for the fixed point.

    Raises:
        ValueError: none has this name.
    """
    if name not in SOLVER_NAMES:
        raise ValueError(f"Choose one of {', '.join(SOLVER_NAMES)}: no inversion of flows is called {name!r}.")
    return FLOW_SOLVERS.get(name)
