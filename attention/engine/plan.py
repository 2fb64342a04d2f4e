"""What a patched MODEL is to do: the controls on it and how they get at the source image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ...host.marks import KEY
from ...inversion.record import Inversion
from .control import Control
from .recorded import Keeping
from .variation import Variation


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that edit nodes have put on a MODEL.

    Attributes:
        controls: in the order in which they apply.
        inversion: the source image of all of them.
        packed: run the source in the same UNet call as the target, instead of in a call of its own.
        schedule: sigmas, noisy to clean, that a run takes whatever sampler node starts it, beginning at the
            inverted latent; None leaves start and schedule to the sampler.
        variation: of the noise that such a run starts with; None for the inverted one.
        keeping: of what edits read of the source, for later edits of the same inversion; None for nothing.
        alters: whether any control does more than look.
    """

    controls: tuple[Control, ...] = ()
    inversion: Inversion | None = None
    packed: bool = False
    schedule: tuple[float, ...] | None = None
    variation: Variation | None = None
    keeping: Keeping | None = None
    alters: bool = False

    @property
    def edits(self) -> bool:
        """Whether a run comes out otherwise than without it."""
        return self.alters or self.schedule is not None

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        return self  # immutable; hosts before 0.30 copy model options deeply

    def with_source(self, inversion: Inversion) -> Plan:
        """The plan with a source image.

        Raises:
            ValueError: the plan already has another one.
        """
        if self.inversion is not None and self.inversion is not inversion:
            raise ValueError(
                f"Two edits on one model read different inversions: {self.inversion.describe()} and "
                f"{inversion.describe()}. Connect the same inversion to all edit nodes of a model."
            )
        return replace(self, inversion=inversion)


def plan_of(model: Any) -> Plan:
    """The plan on a host MODEL; an empty one if it carries no edits."""
    return model.model_options.get("transformer_options", {}).get(KEY, Plan())
