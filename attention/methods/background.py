"""Exact background: the source's own trajectory outside a mask, at every step.

The latent blending of Prompt-to-Prompt (local blend) and MAG-Edit, for any sampler: z = M z + (1 - M) z*.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ...inversion.record import Inversion
from ..engine.acts import Window
from ..engine.after_step import keep_source
from ..engine.control import LatentControl
from ..engine.moment import Moment, savable
from ..masks.cells import check_aspect, for_batch, resize
from ..masks.judged import judge_mask


@dataclass
class _Cells:
    """The mask on latent cells, by what the latents are (shape, device, precision)."""

    by_kind: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ExactBackground(LatentControl):
    """Keep the image outside a mask exactly, up to the autoencoder.

    Attributes:
        changed: (M, H, W) bool, where the image may change.
        start: share of the steps after which blending begins (MAG-Edit 0.7, Prompt-to-Prompt 0.2).
        name: the node's that put it there.
    """

    changed: Tensor
    start: float = 0.0
    name: str = "Exact Background"
    guidable = True
    on_joint = True

    def fits(self, size: tuple[int, int]) -> None:
        """Refuse a mask of another picture."""
        check_aspect(self.changed, size, f"mask of {self.name}")

    def begin(self, run: Moment) -> _Cells:
        judge_mask(run, self.changed, self.name)
        return _Cells()

    def acts(self, run: Moment, state: _Cells) -> bool:
        return run.inversion is not None and run.step >= Window(self.start).first_in(run)

    def given(self, run: Moment, state: _Cells, x: Tensor, sigma: float) -> Tensor:
        """The network sees the source's latent outside the mask."""
        return self._blend(run, state, x, lambda inversion, there: inversion.at(sigma, there))

    def predicted(self, run: Moment, state: _Cells, denoised: Tensor, x: Tensor, sigma: float) -> Tensor:
        """Outside the mask the sampler is steered along the source's own step."""
        return self._blend(run, state, denoised, lambda inversion, there: inversion.clean_at(sigma, there))

    def result(self, run: Moment, state: _Cells, latent: Tensor, source: Tensor) -> Tensor:
        """The image's own latent outside the mask, whatever the sampler's last step rounded it to."""
        return self._blend(run, state, latent, lambda *_: source)

    def _blend(self, run: Moment, state: _Cells, x: Tensor, source: Callable[[Inversion, Tensor], Tensor]) -> Tensor:
        if run.inversion is None:
            return x
        kind = (x.shape, x.device, x.dtype)
        if kind not in state.by_kind:
            state.by_kind[kind] = savable(lambda: self._cells(x))
        there = run.trajectory(run.inversion, x.device)
        return keep_source(x, source(run.inversion, there), state.by_kind[kind])

    def _cells(self, like: Tensor) -> Tensor:
        """(B, 1, h, w) as `like`: 1 where any pixel of a latent cell changes."""
        cells = resize(self.changed, (like.shape[-2], like.shape[-1]), "any")
        return for_batch(cells, like.shape[0], f"mask of {self.name}")[:, None].to(like)
