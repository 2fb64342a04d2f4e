"""What a method must say to act inside the UNet, and what the engine hands it there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .families import Family, Layer

if TYPE_CHECKING:
    from ..inversion.record import Conditioning
    from .guidance import Network
    from .run import Run

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention: q (R, N, C), k and v (R, L, C), heads side by side in C, to (R, N, C)."""


@dataclass(frozen=True, eq=False)
class Features:
    """Queries, keys and values of one attention: q (R, N, C), k and v (R, L, C), heads side by side in C."""

    q: Tensor
    k: Tensor
    v: Tensor


class SourceRows:
    """The source's features repeated to the target's rows, each part when it is first asked for.

    Args:
        chunks: the features that each target chunk reads, S rows each.
        batch: images per chunk; S is 1 or the batch.
    """

    def __init__(self, chunks: Sequence[Features], batch: int) -> None:
        self._chunks, self._batch = chunks, batch

    @cached_property
    def q(self) -> Tensor:
        """(R, N, C)."""
        return torch.cat([_expand(features.q, self._batch) for features in self._chunks])

    @cached_property
    def k(self) -> Tensor:
        """(R, L, C)."""
        return torch.cat([_expand(features.k, self._batch) for features in self._chunks])

    @cached_property
    def v(self) -> Tensor:
        """(R, L, C)."""
        return torch.cat([_expand(features.v, self._batch) for features in self._chunks])


def _expand(x: Tensor, batch: int) -> Tensor:
    if x.shape[0] not in (1, batch):
        raise ValueError(
            f"The inversion holds {x.shape[0]} image(s), but the sampler runs a batch of {batch}. Use one image, "
            "or as many as the batch."
        )
    return x.expand(batch, *x.shape[1:])


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
        source: the source's features repeated to the target rows, where a control asked for them: those of the
            source prompt for every chunk. In cross-attention k and v hold the source's own L tokens.
        halves: the same, but each chunk's own half of guidance where the source has both (see
            `Control.both_halves`).
        heads: attention heads that lie side by side in C.
        lengths: per chunk, the number of its prompt's own text tokens. The host repeats prompts to a common
            length; the first `lengths[i]` tokens of k and v hold all that there is.
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
    halves: Features | SourceRows | None = None
    heads: int = 1
    lengths: tuple[int, ...] = ()
    extra: Mapping[str, tuple[Tensor, Tensor]] | None = None

    @property
    def plain(self) -> bool:
        """Whether `own` is plain attention on q, k and v, so that parts of it may be computed alone."""
        return getattr(self.own, "plain", False)

    def rows(self, chunk: int) -> slice:
        """The rows of a chunk."""
        return slice(chunk * self.batch, (chunk + 1) * self.batch)


@dataclass(frozen=True)
class Claim:
    """Attention that a control computes anew instead of standing on `own`; two such controls exclude each other.

    Attributes:
        kind: "self" or "cross".
        layers: where.
        start, end: during which share of the steps, 0 to 1.
    """

    kind: str
    layers: tuple[Layer, ...]
    start: float = 0.0
    end: float = 1.0

    def shared(self, other: Claim) -> tuple[Layer, ...]:
        """Layers that both claim at the same time."""
        if self.kind != other.kind or max(self.start, other.start) >= min(self.end, other.end):
            return ()
        return tuple(layer for layer in self.layers if layer in other.layers)


class Control:
    """A method acting inside the UNet. Subclasses are frozen dataclasses; the run's state lives in Run.

    A control names the layers it changes; for each run it may prepare; and it computes the target rows'
    attention. What it does not say, the engine leaves as it is.
    """

    name = "control"
    both_halves: bool = False
    """Whether each half of guidance reads its own half of the source. Costs a second source row per step, unless
    the source prompt is the negative prompt (both empty, as for photographs): then the halves are the same."""
    passive: bool = False
    """Whether it only looks: its layers' outputs stay what they are without it, bit for bit."""

    moves: bool = False
    """Whether it changes the sampler's own latent, see `moved`."""
    keeps_sums: bool = False
    """Whether layers add to sums while a UNet call runs, so that a call must not be made twice."""
    shapes_guidance: bool = False
    """Whether it changes what guidance multiplies, see `difference`."""
    guidable: bool = False
    """Whether gradients may be taken through it: `cross_map` is true of it, and what it does is differentiable."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Control:
        return self

    def self_layers(self, family: Family) -> tuple[Layer, ...]:
        """Layers whose self-attention this control changes or looks at."""
        return ()

    def cross_layers(self, family: Family) -> tuple[Layer, ...]:
        """Layers whose cross-attention this control changes or looks at."""
        return ()

    def replaces(self, family: Family) -> tuple[Claim, ...]:
        """What this control computes anew. Within a layer it then comes before the controls that stand on `own`."""
        return ()

    def prepare(self, run: Run) -> None:
        """Called once per run, before the first step."""

    def acts(self, run: Run) -> bool:
        """Whether this control does anything at the run's present step; if not, nothing else of it is called."""
        return True

    def reads_source(self, run: Run) -> bool:
        """Whether the source's features are needed at the run's present step."""
        return False

    def reads_self(self, run: Run) -> tuple[Layer, ...]:
        """Layers whose self-attention features of the source are read at the present step, if any are."""
        return self.self_layers(run.family)

    def reads_cross(self, run: Run) -> tuple[Layer, ...]:
        """Layers whose cross-attention features of the source are read at the present step, if any are."""
        return ()

    def residual_blocks(self, family: Family) -> tuple[tuple[str, int], ...]:
        """The host's names of UNet blocks whose residual features this control takes from the source."""
        return ()

    def reads_blocks(self, run: Run) -> tuple[tuple[str, int], ...]:
        """Those of them that it takes at the present step."""
        return ()

    def self_attention(self, call: AttentionCall) -> Tensor:
        """The target rows' self-attention output (R, N, C)."""
        return call.own()

    def cross_attention(self, call: AttentionCall) -> Tensor:
        """The target rows' cross-attention output (R, N, C)."""
        return call.own()

    def look(self, kind: str, call: AttentionCall) -> None:
        """See the "self" or "cross" attention of one of its layers; what a passive control has in place of both."""

    def cross_map(self, call: AttentionCall, source: Tensor, target: Tensor) -> Tensor:
        """The map (B, H, N, L) that this control puts in the place of the conditional rows' cross-attention map.

        Args:
            source: (B, H, N, L_s), the source's map; its text may have another length.
            target: (B, H, N, L), the target's own, or what earlier controls made of it.
        """
        return target

    def copies(self, run: Run, word: Sequence[int]) -> bool:
        """Whether the map's columns at positions of the target prompt are now the source's, whatever the edit."""
        return False

    def contexts(self, run: Run) -> Mapping[str, Tensor]:
        """Further contexts (1 or B, L, C) that the cross layers shall project to keys and values."""
        return {}

    def moved(self, run: Run, x: Tensor, network: Network) -> Tensor:
        """The latent (B, C, h, w) that the sampler shall go on from instead of x, before this step's prediction."""
        return x

    def second_negative(self) -> Conditioning | None:
        """A further negative prompt, whose prediction this control mixes into the sampler's own by `negative_share`.

        It costs a row of its own in every step, treated as the unconditional rows are.
        """
        return None

    def negative_share(self, run: Run) -> float:
        """Share of the sampler's own negative prediction at this step, 0..1; the rest is the second negative's."""
        return 1.0

    def difference(self, run: Run, difference: Tensor) -> Tensor:
        """What guidance shall multiply: given the conditional prediction minus the unconditional one (B, C, h, w)."""
        return difference

    def model_input(self, run: Run, x: Tensor, sigma: float) -> Tensor:
        """The latent (B, C, h, w), in the sampler's scale, that the network is given instead of x."""
        return x

    def denoised(self, run: Run, denoised: Tensor, x: Tensor, sigma: float) -> Tensor:
        """The prediction of the clean latent (B, C, h, w) that the sampler is given."""
        return denoised

    def result(self, run: Run, latent: Tensor) -> Tensor:
        """The run's final latent (B, C, h, w), in DDPM scale at the inversion's cleanest level."""
        return latent

    def finish(self, run: Run) -> None:
        """Called once after the last step of a run that was neither interrupted nor failed."""
