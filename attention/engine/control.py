"""What a method must say to act inside the UNet, and what the engine hands it there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ...host.conditioning import Conditioning
from ...host.families import Family, Layer
from .call import AttentionCall
from .moment import Moment


class Slopes(Protocol):
    """The network at the present noise level, for controls that differentiate through it: `slopes.Network`."""

    def slopes(
        self, layers: Sequence[Layer], checkpointing: bool = False
    ) -> AbstractContextManager[Callable[..., Tensor | None]]:
        """See `slopes.Network.slopes`."""
        ...


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

    def prepare(self, run: Moment) -> None:
        """Called once per run, before the first step."""

    def acts(self, run: Moment) -> bool:
        """Whether this control does anything at the run's present step; if not, nothing else of it is called."""
        return True

    def reads_source(self, run: Moment) -> bool:
        """Whether the source's features are needed at the run's present step."""
        return False

    def reads_self(self, run: Moment) -> tuple[Layer, ...]:
        """Layers whose self-attention features of the source are read at the present step, if any are."""
        return self.self_layers(run.family)

    def reads_cross(self, run: Moment) -> tuple[Layer, ...]:
        """Layers whose cross-attention features of the source are read at the present step, if any are."""
        return ()

    def residual_blocks(self, family: Family) -> tuple[tuple[str, int], ...]:
        """The host's names of UNet blocks whose residual features this control takes from the source."""
        return ()

    def reads_blocks(self, run: Moment) -> tuple[tuple[str, int], ...]:
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

    def copies(self, run: Moment, word: Sequence[int]) -> bool:
        """Whether the map's columns at positions of the target prompt are now the source's, whatever the edit."""
        return False

    def contexts(self, run: Moment) -> Mapping[str, Tensor]:
        """Further contexts (1 or B, L, C) that the cross layers shall project to keys and values."""
        return {}

    def moved(self, run: Moment, x: Tensor, network: Slopes) -> Tensor:
        """The latent (B, C, h, w) that the sampler shall go on from instead of x, before this step's prediction."""
        return x

    def second_negative(self) -> Conditioning | None:
        """A further negative prompt, whose prediction this control mixes into the sampler's own by `negative_share`.

        It costs a row of its own in every step, treated as the unconditional rows are.
        """
        return None

    def negative_share(self, run: Moment) -> float:
        """Share of the sampler's own negative prediction at this step, 0..1; the rest is the second negative's."""
        return 1.0

    def difference(self, run: Moment, difference: Tensor) -> Tensor:
        """What guidance shall multiply: given the conditional prediction minus the unconditional one (B, C, h, w)."""
        return difference

    def model_input(self, run: Moment, x: Tensor, sigma: float) -> Tensor:
        """The latent (B, C, h, w), in the sampler's scale, that the network is given instead of x."""
        return x

    def denoised(self, run: Moment, denoised: Tensor, x: Tensor, sigma: float) -> Tensor:
        """The prediction of the clean latent (B, C, h, w) that the sampler is given."""
        return denoised

    def result(self, run: Moment, latent: Tensor) -> Tensor:
        """The run's final latent (B, C, h, w), in DDPM scale at the inversion's cleanest level."""
        return latent

    def finish(self, run: Moment) -> None:
        """Called once after the last step of a run that was neither interrupted nor failed."""
