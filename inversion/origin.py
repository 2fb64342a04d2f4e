"""The one signature of what begins a trajectory: an image of a photograph, or of a prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..host.conditioning import Conditioning, source_conditioning
from ..host.cost import measured
from ..host.families import family_of
from ..host.marks import check_unedited
from ..host.models import check_latent, prediction_of
from ..host.transformers import takes_guidance
from .fingerprint import weights_name
from .improvement import Found
from .record import Inversion
from .schedule import connected_levels, levels
from .walk import evaluations


@dataclass(frozen=True)
class Origin(ABC):
    """Makes an inversion of a latent.

    Attributes:
        steps: DDIM steps, 1 to 1000.
        offset: timestep offset, 0 or 1.
    """

    name: ClassVar[str]
    """For messages and the log."""
    steps: int = 50
    offset: int = 0

    @abstractmethod
    def trajectory(
        self,
        model: Any,
        latent: dict[str, Any],
        sigmas: list[float],
        positive: Conditioning,
        negative: Conditioning | None,
        guidance: float,
    ) -> list[Tensor]:
        """The latents (B, C, h, w) of ascending sigmas, clean to noisy; the arguments are those of `__call__`."""

    def connected(self) -> tuple[float, ...] | None:
        """A schedule in the place of the model's own, noisy to 0; None for the model's."""
        return None

    def walked(self, model: Any, sigmas: list[float]) -> list[float]:
        """The levels that are visited on the way along ascending sigmas: these, and maybe others between them."""
        return sigmas

    def calls(self, kind: str, steps: int) -> int:
        """Calls of the model for so many steps, by what it predicts."""
        return steps

    def told(self, kind: str) -> str:
        """What the inversion says of how it was made."""
        return "DDIM inversion"

    def __call__(
        self,
        model: Any,
        latent: dict[str, Any],
        positive: Conditioning,
        negative: Conditioning | None = None,
        guidance: float = 1.0,
    ) -> Found:
        """Make the trajectory, with the positive prompt as its source prompt.

        Args:
            model: host MODEL without edits; what only records attention may be on it.
            latent: LATENT of the source images.
            positive: source prompt.
            negative: negative prompt, needed at a guidance other than 1.
            guidance: scale of classifier-free guidance.

        Raises:
            ValueError: edits on the model, a source prompt that is more than one text, an unknown family or prediction,
                a broken latent, a connected schedule that is none, or guidance without a negative prompt.
        """
        check_unedited(model, passive=True, place=self.name)
        source_conditioning(positive, f"source prompt of {self.name}")
        family, kind = family_of(model), prediction_of(model)
        if family.joint != (kind == "flow"):
            raise ValueError(
                f"Remove the sampling patch (ModelSampling...) from this {family.name} model, which makes it predict "
                f"{kind}."
            )
        samples = check_latent(latent, self.name, model)
        latent = {**latent, "samples": samples}
        positive = with_source_guidance(model, positive)
        sampling, given = model.get_model_object("model_sampling"), self.connected()
        sigmas = levels(sampling, self.steps, self.offset) if given is None else connected_levels(sampling, given)
        calls = self.calls(kind, len(self.walked(model, sigmas)) - 1)
        rows = evaluations(calls, len(samples), guidance)
        with measured(model, self.name, f"{rows} UNet evaluations") as (counted, cost):
            visited = self.trajectory(counted, latent, sigmas, positive, negative, guidance)
        inversion = Inversion(
            latents=torch.stack(visited),
            sigmas=tuple(sigmas),
            steps=self.steps if given is None else len(sigmas) - 1,
            offset=self.offset if given is None else 0,
            family=family.name,
            prediction=kind,
            conditioning=positive,
            method=self.told(kind),
            weights=weights_name(model),
            connected=() if given is None else (float(sampling.sigma_min), float(sampling.sigma_max)),
        )
        return Found(inversion, cost)


def with_source_guidance(model: Any, positive: Conditioning) -> Conditioning:
    """A source prompt with the embedded guidance that it is inverted at, where the model reads one: 1, if it has none.

    Without it the host runs Flux at 3.5, at which a trajectory does not lead back to its image; papers invert at 1
    (Stable Flow, RF-Solver, FireFlow) or 1.5 (KV-Edit). A FluxGuidance node on the source prompt says otherwise.
    """
    if not takes_guidance(model):
        return positive
    return [[states, {"guidance": 1.0, **options}] for states, options in positive]
