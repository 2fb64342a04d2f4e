"""What every inversion returns, and the one signature of those that make a better inversion of another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..host.conditioning import Conditioning
from ..host.cost import Cost
from ..host.families import family_of
from ..host.marks import check_unedited
from ..host.models import prediction_of
from .record import Inversion


@dataclass(frozen=True, eq=False)
class Found:
    """What an inversion found.

    Attributes:
        inversion: the trajectory; its errors are what the method measured of itself at every step.
        cost: what it took.
        steps: what a method tells of each of its steps, for those who want to look closer.
    """

    inversion: Inversion
    cost: Cost
    steps: tuple[Any, ...] = ()


class Improvement(ABC):
    """Makes a better inversion of an inversion.

    A subclass is a frozen dataclass of its settings, of which the name in the disk cache is made; so its fields are
    numbers, texts, tensors, prompts, and containers and dataclasses of them. It writes `improve`, within which
    `measured` counts and logs, and `walk_inversion` (or an `OwnSampler` under `run_sampler`, where gradients are
    wanted) runs the model with the host's progress bar. For instance, one that samples the source anew:

        @dataclass(frozen=True)
        class Sampled(Improvement):
            name: ClassVar[str] = "Sampled source"

            def improve(self, model, inversion, negative, guidance):
                def walk(predict, z):
                    return sample(predict, z, inversion.schedule, inversion.prediction)

                planned = evaluations(len(inversion.sigmas) - 1, inversion.batch, guidance)
                with measured(model, self.name, f"{planned} UNet evaluations") as (counted, cost):
                    visited = walk_inversion(counted, walk, inversion, inversion.schedule, negative, guidance)
                errors = relative_errors(visited, inversion)
                return Found(replace(inversion, latents=torch.stack(visited[::-1]), errors=errors), cost)

        found = Sampled()(model, inversion, negative, 7.5)
    """

    name: ClassVar[str]
    """For messages and the log."""
    on_flows: ClassVar[bool] = False
    """Whether it improves inversions of rectified flows too."""

    @abstractmethod
    def improve(self, model: Any, inversion: Inversion, negative: Conditioning | None, guidance: float) -> Found:
        """Make it, of what `__call__` has checked; arguments and returned value are its own."""

    def __call__(self, model: Any, inversion: Inversion, negative: Conditioning | None, guidance: float) -> Found:
        """Make the better inversion.

        Args:
            model: host MODEL without edits, as the image was inverted with; None will do for one that evaluates
                nothing.
            inversion: what to improve.
            negative: the edit's negative prompt, most often an empty one; needed at a guidance other than 1.
            guidance: scale at which sampling shall find the image again.

        Raises:
            ValueError: edits on the model, another model than the inversion's, a rectified flow where the method knows
                none, or no negative prompt where one is needed.
        """
        if inversion.prediction == "flow" and not self.on_flows:
            raise ValueError(
                f"Connect the inversion itself, or Fixed-Point Inversion's: {self.name} does not work on rectified "
                f"flows such as {inversion.family} yet."
            )
        if model is not None:
            check_unedited(model, place=self.name)
            inversion.check_model(family_of(model).name, prediction_of(model))
        return self.improve(model, inversion, negative, guidance)

    def pictures(self, found: Found) -> list[Tensor]:
        """What a node shows of a run beside the plot of errors: pictures (1, h, w, 3) in 0..1 of that plot's size."""
        return []

    def caption(self, inversion: Inversion, guidance: float) -> tuple[str, str]:
        """Title and note of the plot of a found inversion's errors, which may come from disk."""
        title = f"relative latent error of sampling at guidance {guidance:g}, noise to image"
        return title, f"{inversion.errors[-1]:.4f} at the end"
