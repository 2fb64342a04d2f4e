"""DDIM inversion (Song et al. 2021): the noise that a photograph would have been drawn from.

Of a rectified flow it is Euler's: the velocity is taken at the level that a step goes to, as DDIM inversion takes the
noise, and each step is repeated at the latent that it has found (fixed point), so that stock Euler takes it back. Or it
is one of `flow_solvers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..host.conditioning import Conditioning
from ..host.models import prediction_of
from .fixed_point import refine
from .flow_solvers import FIXED_POINT, FlowSolver, flow_solver_of, solve
from .origin import Origin
from .schedule import levels
from .steps import Predict, invert
from .walk import run_walk


@dataclass(frozen=True)
class DDIMInversion(Origin):
    """DDIM inversion of a batch of images with one prompt.

    All papers invert at guidance 1. The prompt is the empty one for CPAM, FPE and MasaCtrl.

    Attributes:
        fine_steps: invert in so many steps, and keep the latents of the schedule's own levels; 0 inverts in the
            schedule's steps. Plug-and-Play's authors invert in 999 steps and edit in 50.
        flow_iterations: calls of the model per step on rectified flows; 1 is Euler's inversion, more are fixed-point.
        flow_solver: how rectified flows are inverted, one of `SOLVER_NAMES`; only the first reads flow_iterations.
        sigmas: a schedule in the place of the model's own, falling to 0, where the image then lies; None for the
            model's. Steps and offset are not read with it.

    Raises:
        ValueError: when called, beside what any origin refuses, a noise mask on the latent, or a solver of flows for a
            model that is none.
    """

    name: ClassVar[str] = "DDIM inversion"
    fine_steps: int = 0
    flow_iterations: int = 3
    flow_solver: str = FIXED_POINT
    sigmas: tuple[float, ...] | None = None

    def connected(self) -> tuple[float, ...] | None:
        """See `Origin`."""
        return self.sigmas

    def walked(self, model: Any, sigmas: list[float]) -> list[float]:
        """See `Origin`; fine levels above the noisiest that is kept lead nowhere."""
        if self.fine_steps < len(sigmas):
            return sigmas
        fine = levels(model.get_model_object("model_sampling"), self.fine_steps, self.offset)
        return sorted({*sigmas, *(sigma for sigma in fine if sigma < sigmas[-1])})

    def _solver(self, kind: str) -> FlowSolver | None:
        """The solver of a flow; None for DDIM's and Euler's steps.

        Raises:
            ValueError: the model is no flow, or no solver is called so.
        """
        solver = flow_solver_of(self.flow_solver)
        if solver is not None and kind != "flow":
            raise ValueError(
                f"Set {self.name}'s flow_solver to {FIXED_POINT!r}: {solver.name} inverts rectified flows such as Flux "
                f"and SD3, and this model predicts {kind}."
            )
        return solver

    def calls(self, kind: str, steps: int) -> int:
        """See `Origin`."""
        solver = self._solver(kind)
        if solver is not None:
            return solver.calls(steps)
        return steps * (self.flow_iterations if kind == "flow" else 1)

    def told(self, kind: str) -> str:
        """See `Origin`."""
        solver = self._solver(kind)
        if solver is not None:
            return f"{solver.name} inversion"
        if kind != "flow":
            return self.name
        fixed = f" with {self.flow_iterations} fixed-point iterations" if self.flow_iterations > 1 else ""
        return f"Euler inversion{fixed}"

    def trajectory(
        self,
        model: Any,
        latent: dict[str, Any],
        sigmas: list[float],
        positive: Conditioning,
        negative: Conditioning | None,
        guidance: float,
    ) -> list[Tensor]:
        """See `Origin`."""
        if latent.get("noise_mask") is not None:
            raise ValueError(
                "Connect VAE Encode's latent without a noise mask: DDIM inversion is of the whole photograph, and a "
                "mask on its latent would have no effect (VAE Encode for Inpainting also paints masked pixels grey). "
                "Exact Background keeps the image outside a mask."
            )
        kind, fine = prediction_of(model), self.walked(model, sigmas)
        solver = self._solver(kind)

        def walk(predict: Predict, image: Tensor) -> list[Tensor]:
            if solver is not None:
                return solve(solver.invert, predict, image, fine)
            if kind == "flow":
                steps = refine(predict, image, fine, kind, 0.0, self.flow_iterations)
                return [image, *(step.z for step in steps)]
            return invert(predict, image, fine, kind)

        start = latent["samples"]
        visited = run_walk(model, walk, start, fine, positive=positive, negative=negative, guidance=guidance)
        return [visited[fine.index(sigma)] for sigma in sigmas]
