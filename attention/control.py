"""What a method must say to act inside the UNet, and what the engine hands it there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .families import Family, Layer

if TYPE_CHECKING:
    from .run import Run

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention: q (R, N, C), k and v (R, L, C), heads side by side in C, to (R, N, C)."""


@dataclass(frozen=True, eq=False)
class Features:
    """Queries, keys and values of one self-attention layer, each (R, N, C), heads side by side in C."""

    q: Tensor
    k: Tensor
    v: Tensor


class SourceRows:
    """The source's features repeated from S rows to `chunks` target chunks of `batch` images, when asked for."""

    def __init__(self, features: Features, chunks: int, batch: int) -> None:
        self._features, self._chunks, self._batch = features, chunks, batch

    @cached_property
    def q(self) -> Tensor:
        """(R, N, C)."""
        return _repeat(self._features.q, self._chunks, self._batch)

    @cached_property
    def k(self) -> Tensor:
        """(R, N, C)."""
        return _repeat(self._features.k, self._chunks, self._batch)

    @cached_property
    def v(self) -> Tensor:
        """(R, N, C)."""
        return _repeat(self._features.v, self._chunks, self._batch)


def _repeat(x: Tensor, chunks: int, batch: int) -> Tensor:
    if x.shape[0] not in (1, batch):
        raise ValueError(
            f"The inversion holds {x.shape[0]} image(s), but the sampler runs a batch of {batch}. Use one image, "
            "or as many as the batch."
        )
    return x.expand(batch, -1, -1).repeat(chunks, 1, 1)


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One attention of the target rows, as a control sees it.

    Attributes:
        run: the run's state; layer: where; shape: (h, w) of the feature map.
        q, k, v: the target rows' own, R = chunks * batch rows in chunk order.
        conditional: which chunks are conditional, one bool per chunk.
        batch: images per chunk.
        own: computes the target's attention as it would be without this control (earlier controls and other
            packs' patches included).
        attend: plain attention on any queries, keys and values.
        source: the source's features repeated to the target rows, in self-attention where asked for.
        extra: keys and values (R, L, C) of the contexts that controls asked for, in cross-attention.
    """

    run: Run
    layer: Layer
    shape: tuple[int, int]
    q: Tensor
    k: Tensor
    v: Tensor
    conditional: tuple[bool, ...]
    batch: int
    own: Callable[[], Tensor]
    attend: Attend
    source: Features | SourceRows | None = None
    extra: Mapping[str, tuple[Tensor, Tensor]] | None = None

    @property
    def plain(self) -> bool:
        """Whether `own` is plain attention on q, k and v, so that parts of it may be computed alone."""
        return getattr(self.own, "plain", False)


class Control:
    """A method acting inside the UNet. Subclasses are frozen dataclasses; the run's state lives in Run.

    A control names the layers it changes; for each run it may prepare; and it computes the target rows'
    attention. What it does not say, the engine leaves as it is.
    """

    name = "control"

    def __deepcopy__(self, memo: dict[int, Any]) -> Control:
        return self

    def self_layers(self, family: Family) -> tuple[Layer, ...]:
        """Layers whose self-attention this control changes."""
        return ()

    def cross_layers(self, family: Family) -> tuple[Layer, ...]:
        """Layers whose cross-attention this control changes."""
        return ()

    def prepare(self, run: Run) -> None:
        """Called once per run, before the first step."""

    def acts(self, run: Run) -> bool:
        """Whether this control does anything at the run's present step; if not, nothing else of it is called."""
        return True

    def reads_source(self, run: Run) -> bool:
        """Whether the source's features are needed at the run's present step."""
        return False

    def self_attention(self, call: AttentionCall) -> Tensor:
        """The target rows' self-attention output (R, N, C)."""
        return call.own()

    def cross_attention(self, call: AttentionCall) -> Tensor:
        """The target rows' cross-attention output (R, N, C)."""
        return call.own()

    def contexts(self, run: Run) -> Mapping[str, Tensor]:
        """Further contexts (1 or B, L, C) that the cross layers shall project to keys and values."""
        return {}

    def model_input(self, run: Run, x: Tensor, sigma: float) -> Tensor:
        """The latent (B, C, h, w), in the sampler's scale, that the network is given instead of x."""
        return x

    def denoised(self, run: Run, denoised: Tensor, x: Tensor, sigma: float) -> Tensor:
        """The prediction of the clean latent (B, C, h, w) that the sampler is given."""
        return denoised

    def result(self, run: Run, latent: Tensor) -> Tensor:
        """The run's final latent (B, C, h, w), in DDPM scale at the inversion's cleanest level."""
        return latent
