"""The walk of Dynamic Prompt Learning along an inversion, under the host's guider."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ....host.conditioning import with_states
from ....host.families import Family, Layer
from ....host.gradients import gradient
from ....host.guider import HostRun
from ....host.marks import KEY
from ....host.progress import show, stop_if_cancelled
from ....inversion.null_text import Evaluate, NullTextOptimiser
from ....inversion.steps import Predict
from ...engine.acts import Act, How, Site
from ...engine.control import Control
from ...engine.reading import Maps, Reading
from ...engine.run import Run
from ...engine.slopes import kept_whole
from ...maps.probabilities import OBJECT_SCALE
from .learn import Learned, LearnSlope, Task, learn_step
from .plot import LivePlot
from .settings import Settings, clock

NAME = "Dynamic Prompt Learning"


@dataclass(frozen=True, eq=False)
class Look(Control):
    """Has the engine's hooks put on the layers whose maps are read."""

    name = NAME

    def acts_on(self, family: Family) -> tuple[Act, ...]:
        return (Act(Site.CROSS, looked_at(family), how=How.LOOKS),)


def looked_at(family: Family) -> tuple[Layer, ...]:
    """The layers whose maps the losses are of: 16 x 16 tokens at 512 pixels."""
    return tuple(layer for layer in family.layers if layer.scale == OBJECT_SCALE)


@dataclass(eq=False, kw_only=True)
class Learner(NullTextOptimiser):
    """Null-text's walk along an inversion of one image, whose prompt learns its nouns before each step.

    Attributes:
        task: what is learned. how: and how.
        learned: what it has found, noisy to clean.
    """

    task: Task
    how: Settings
    learned: list[Learned] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.plot = LivePlot(len(self.inversion.sigmas) - 1)

    def conditional(
        self, evaluate: Evaluate, positive: list[dict[str, Any]], host: HostRun, options: dict[str, Any]
    ) -> Predict:
        """The noise of the prompt as it is after learning at this step."""
        steps, rows = len(self.inversion.sigmas) - 1, self.task.nouns.first(self.task.text.vectors())

        def noise(z: Tensor, sigma: float) -> Tensor:
            number = len(self.learned)
            before = self.learned[-1].rows if self.learned else rows
            with torch.enable_grad():
                found = learn_step(
                    self.task,
                    self._slope(positive, host, options, z, sigma),
                    before,
                    clock(number, self.inversion.steps),
                    self.how,
                    lambda losses: show(f"{NAME}, step {number + 1} of {steps}: {losses}"),
                )
            self.learned.append(found)
            self.plot.add(found)
            return evaluate(with_states(positive, found.states.to(z.device)), z, sigma)

        return noise

    def told(self) -> str:
        """How it went, in a line: how many steps were content with their losses, and what these are at the end."""
        passes, low = sum(len(step.losses) for step in self.learned), sum(step.content for step in self.learned)
        last = next((step.losses[-1] for step in reversed(self.learned) if step.losses), {})
        end = ", ".join(f"{name} {value:.3f}" for name, value in last.items()) or "there was nothing to learn"
        return (
            f"{passes} passes; losses below their thresholds in {low} of {len(self.learned)} steps; at the end {end}."
        )

    def _slope(
        self, positive: list[dict[str, Any]], host: HostRun, options: dict[str, Any], z: Tensor, sigma: float
    ) -> LearnSlope:
        """Passes at a latent that end at the last map, and their way back to the text."""
        run: Run = options["transformer_options"][KEY]
        run.move_to(sigma)
        layers = looked_at(run.family)
        if self.how.checkpointing:
            options = kept_whole(options, {max(layers, key=lambda layer: layer.index).block})
        x = z * (1 + sigma * sigma) ** 0.5

        def slope(states: Tensor, loss: Callable[[Maps], Tensor | None]) -> Tensor | None:
            stop_if_cancelled()
            leaf = states.to(x.device).requires_grad_()
            with run.guided(Reading(layers)) as reading:
                conds = with_states(positive, leaf)
                host.evaluate(conds, x, sigma, options)
                value = loss(reading.maps)
                if value is None:
                    return None
                self.cost.backward += len(x)
                return gradient(value, [leaf])[0]

        return slope
