"""MAG-Edit on a MODEL: its parts, and the latent blending that all of them share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ....host.gradients import for_gradients
from ....inversion.record import Inversion
from ...engine import install as engine
from ...engine.after_step import SourceAfterStep
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

    def prepare(self, run: Run) -> None:
        """The earliest start of all parts counts; a schedule may leave the last step out, and blends all the same."""
        parts = [control for control in run.controls if isinstance(control, MAG)]
        first, last = round(min(part.blend for part in parts) * run.steps), 0
        for sigma in run.sigmas[:-1]:
            run.move_to(sigma)
            last = run.step
        run.once((self, "first"), lambda: min(first, last) if first < run.steps else run.steps)

    def acts(self, run: Run) -> bool:
        return run.inversion is not None and run.step >= run.kept[self, "first"]

    def first(self, run: Run) -> int:
        return run.kept[self, "first"]

    def mask(self, run: Run, latent: Tensor) -> Tensor:
        """(B, 1, h, w), 1 where the edit may differ from the source."""

        def make() -> Tensor:
            parts = [control for control in run.controls if isinstance(control, MAG)]
            return dilate(union(parts, tuple(latent.shape))[:, 0], 1)[:, None].to(latent)

        return run.once((self, latent.shape, latent.device, latent.dtype), make)
