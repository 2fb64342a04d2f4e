"""MAG-Edit on a MODEL: its parts, and the latent blending that all of them share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ....host.gradients import for_gradients
from ....inversion.record import Inversion
from ...engine import install as engine
from ...engine.acts import Window
from ...engine.after_step import SourceAfterStep
from ...engine.moment import Moment, savable
from ...engine.plan import plan_of
from ...engine.run import Run
from ...masks.cells import dilate
from .control import MAG
from .loop import union

PUBLISHED, EARLY, CUSTOM = "as published", "early stop", "custom"
PRESETS: dict[str, dict[str, Any]] = {
    PUBLISHED: {"iterations": 15, "start": 0.0, "end": 0.5, "gain": 0.0},
    EARLY: {"iterations": 5, "start": 0.0, "end": 0.5, "gain": 0.01},
}
"""The paper's effort (15 iterations in 25 of 50 steps), and one that costs a third of it at most."""


def add_guidance(model: Any, part: MAG, inversion: Inversion | None = None) -> Any:
    """A clone of a host MODEL with one more guided part; all parts on it are guided together.

    Raises:
        ValueError: as `engine.install`; or weights that cannot be differentiated.
    """
    present = [control for control in plan_of(model).controls if isinstance(control, MAG)]
    if part.guides and not any(control.guides for control in present):
        model = for_gradients(model, part.checkpointing)
    if not present:
        model = engine.install(model, MAGBlend(), inversion)
    return engine.install(model, part, inversion)


@dataclass(frozen=True, eq=False)
class MAGBlend(SourceAfterStep):
    """Latent blending: after each of the last steps, the source's latent outside all masks grown by one cell."""

    name = "MAG-Edit blending"
    guidable = True

    def begin(self, run: Run) -> Blending:
        """The earliest start of all parts counts."""
        parts = [control for control in run.controls if isinstance(control, MAG)]
        return Blending(parts, Window(min(part.blend for part in parts)).first_in(run))

    def acts(self, run: Moment, state: Blending) -> bool:
        return run.inversion is not None and run.step >= state.start

    def first(self, run: Moment, state: Blending) -> int:
        return state.start

    def mask(self, run: Moment, state: Blending, latent: Tensor) -> Tensor:
        """(B, 1, h, w), 1 where the edit may differ from the source."""
        key = (tuple(latent.shape), latent.device, latent.dtype)
        if key not in state.masks:
            state.masks[key] = savable(
                lambda: dilate(union(state.parts, tuple(latent.shape))[:, 0], 1)[:, None].to(latent)
            )
        return state.masks[key]


@dataclass
class Blending:
    """The blending of one run: its parts, its first step, and the mask by what the latents are."""

    parts: list[MAG]
    start: int
    masks: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)
