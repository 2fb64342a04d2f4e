"""What guidance did in a run: loss and share of attention of every iteration, as a picture and in words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ....inversion.plot import line_plot
from ...engine.results import Results


@dataclass(frozen=True)
class Point:
    """One iteration, before its update; means over the batch.

    Attributes:
        step, iteration: from 0. loss: what is made smaller. ratio: share of attention, 0 to 1, made larger.
    """

    step: int
    iteration: int
    loss: float
    ratio: float


@dataclass(eq=False)
class Curve:
    """A recorder that one run fills and the next one begins anew; what a run has left is found by its result.

    Attributes:
        name: the words that are guided. kind: the constraint. points: of the last run, or of the present one.
    """

    name: str = ""
    kind: str = "token ratio"
    points: list[Point] = field(default_factory=list)
    runs: Results[list[Point]] = field(default_factory=lambda: Results("No guidance has run yet."), repr=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Curve:
        return self

    def begin(self) -> None:
        """Begin with no points; those of the run before stay with it."""
        self.points = []

    def keep(self, latent: Tensor) -> None:
        """Hold the run's points under the latent (B, C, h, w) that it ended with."""
        self.runs.keep(latent, list(self.points))

    def of(self, after: Any) -> Curve:
        """The curve of the run that `after` comes from, see `Results.of`; an empty one before any run.

        Raises:
            ValueError: several runs could be meant.
        """
        return self if self.runs.empty else Curve(self.name, self.kind, self.runs.of(after))

    def add(self, step: int, iteration: int, loss: float, ratio: float) -> None:
        """Record an iteration."""
        self.points.append(Point(step, iteration, loss, ratio))

    @property
    def steps(self) -> list[list[Point]]:
        """The points of each step, in order."""
        return [[p for p in self.points if p.step == step] for step in dict.fromkeys(p.step for p in self.points)]

    def gains(self) -> list[float]:
        """By how much the iterations of a step raised the ratio; of one iteration each, from step to step."""
        within = [points[-1].ratio - points[0].ratio for points in self.steps if len(points) > 1]
        return within or [b.ratio - a.ratio for a, b in zip(self.points, self.points[1:], strict=False)]

    def worked(self) -> bool:
        """Whether, taken together, the iterations raised the share of attention; one point alone does not tell."""
        gains = self.gains()
        return not gains or sum(gains) > 0

    def latest(self) -> str:
        """What the last step's iterations did, in one line."""
        points = self.steps[-1]
        return (
            f"{self.name!r}, step {points[0].step + 1}: {self.kind} {points[0].ratio:.3f} to {points[-1].ratio:.3f}, "
            f"loss {points[0].loss:.3f} to {points[-1].loss:.3f}"
        )

    def report(self) -> str:
        """What the run did, in words."""
        if not self.points:
            return (
                f"No guidance of {self.name!r} has run. Connect `after` to the sampler's latent or a decoded image; "
                "with 0 iterations or an empty step range there is nothing to show."
            )
        first, last = self.points[0], self.points[-1]
        text = (
            f"{self.name!r}, {self.kind}: {first.ratio:.4f} to {last.ratio:.4f} (loss {first.loss:.4f} to "
            f"{last.loss:.4f}) in {len(self.points)} iterations of {len(self.steps)} steps."
        )
        if not self.worked():
            text += (
                "\nThe guidance did not work: its iterations did not raise the word's attention inside the mask. "
                "Check that the mask lies on the object and that the word is new in the target prompt; lower the scale "
                "if the curve jumps up and down, raise it or take the spatial ratio if it is flat."
            )
        return text

    def picture(self) -> Tensor:
        """Loss above, ratio below, over the iterations, with a line where a step begins: (1, h, w, 3) in 0..1."""
        note = f"{len(self.points)} iterations in {len(self.steps)} steps"
        starts = [index for index, point in enumerate(self.points) if not point.iteration]
        losses = line_plot([p.loss for p in self.points] or [0.0], f"loss of {self.name!r}", note, starts)
        ratios = line_plot([p.ratio for p in self.points] or [0.0], f"{self.kind} of {self.name!r}", note, starts)
        return torch.cat((losses, ratios), dim=1)
