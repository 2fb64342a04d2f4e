"""Cross-attention maps with a gradient to the latent, at the price of that part of the UNet which makes them.

The pass goes the host's own way with the run's controls on, conditional rows only. The layer whose map is the last
that is wanted raises `Enough`; the engine's wrapper around the UNet catches it, so what lies behind that layer is
neither run nor kept for the way back, and the host and other packs see a call that ends as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.samplers
import torch
from comfy.ldm.modules.attention import SpatialTransformer
from torch import Tensor

from .families import Family, Layer
from .gradients import differentiable, gradient, plain

if TYPE_CHECKING:
    from .control import AttentionCall, Control
    from .run import Run

Maps = dict[int, Tensor]
"""Maps (B, H, N, L) by layer index, each row of a layer's softmax as the layer uses it."""
Slope = Callable[..., Tensor | None]
"""A pass and its way back, see `Network.slopes`."""
FORWARD = {
    "SD1.x": {1: 0.985, 2: 0.701, 4: 0.494, 8: 0.317},
    "SD2.x": {1: 0.987, 2: 0.665, 4: 0.480, 8: 0.330},
    "SDXL": {2: 0.927, 4: 0.768},
}
"""Share of the UNet's floating-point operations ahead of the last layer of a scale, by family and scale, counted at
512, 768 and 1024 pixels with PyTorch's own attention."""
BACK = 1.17
"""Operations of the way back for each of the way forth, as `demo/benchmark_mag.py` counts them: weights get no
gradient, but attention's way back computes its scores again."""


class Enough(BaseException):
    """All wanted maps are there. No Exception: what other packs catch as a failure is none of this."""


class Reading:
    """What one pass is to read, and what it has read."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.wanted = {layer.index for layer in layers}
        self.last = max(self.wanted)
        self.maps: Maps = {}
        self.done = False

    def take(self, call: AttentionCall) -> None:
        """Keep a layer's map; leave the UNet at the last one.

        A checkpointed block comes by again on the way back, and has to do again what it did.

        Raises:
            ValueError: the prompt has several parts. Enough: nothing more is wanted.
        """
        if call.layer.index not in self.wanted:
            return
        if len(call.conditional) != 1:
            raise ValueError(
                f"Guided words are looked up in one prompt, but the positive conditioning has {len(call.conditional)} "
                "parts. Connect one Prompt with Words directly, without Conditioning (Combine)."
            )
        found = map_of(call)
        if self.done:
            return
        self.maps[call.layer.index] = found
        if call.layer.index == self.last:
            self.done = True
            raise Enough


def map_of(call: AttentionCall) -> Tensor:
    """The conditional rows' cross-attention map (R, H, N, L), after what the controls put in its place."""
    length = call.lengths[0] if call.lengths else call.k.shape[1]
    found = _softmax(call.q, call.k[:, :length], call.heads)
    source = found if call.source is None else _softmax(call.source.q, call.source.k, call.heads)
    for control in call.run.acting_at("cross", call.layer):
        found = control.cross_map(call, source, found)
    return found


def _softmax(q: Tensor, k: Tensor, heads: int) -> Tensor:
    q, k = _by_head(q, heads), _by_head(k, heads)
    return torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)


def _by_head(x: Tensor, heads: int) -> Tensor:
    """(R, N, C) to (R, H, N, C / H), in float32 at least: half precision is too coarse for small shares."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (heads, -1)).transpose(1, 2)


@dataclass(frozen=True, eq=False)
class Network:
    """The host's network at the run's present noise level, for controls that differentiate through it.

    Attributes:
        guider: the host's guider. timestep: (B,) sigmas. options: the run's model options.
    """

    run: Run
    guider: Any
    timestep: Tensor
    options: dict[str, Any]

    @contextmanager
    def slopes(self, layers: Sequence[Layer], checkpointing: bool = False) -> Iterator[Slope]:
        """Within it, `slope(x, loss, role="positive", alone=None)` is the gradient of a loss on maps of layers.

        x (B, C, h, w) is a latent in the sampler's scale, `loss` a function of the `Maps` to a scalar, or to None
        when no gradient is wanted after all. `role` is the conditioning to read with. With `alone` no control but
        that one acts, and the maps are those of its own layers. The slope (B, C, h, w) is that of the scalar by x.

        Raises:
            ValueError: the guider has no such conditioning, or the gradient is not finite.
        """
        each = [control.cross_layers(self.run.family) for control in self.run.acting() if control.moves]
        lasts = {_last(found).block for found in (layers, *each) if found}
        with differentiable(self.guider.inner_model, self.options, checkpointing) as options:
            if checkpointing:
                options = _kept_whole(options, lasts)
            conds: dict[str, Any] = {}
            sigma = plain(self.timestep)

            def slope(
                x: Tensor, loss: Callable[[Maps], Tensor | None], role: str = "positive", alone: Control | None = None
            ) -> Tensor | None:
                comfy.model_management.throw_exception_if_processing_interrupted()
                if role not in conds:
                    conds[role] = plain(self._conditioning(role))
                leaf = x.detach().requires_grad_()
                wanted = layers if alone is None else alone.cross_layers(self.run.family)
                with self.run.guided(Reading(wanted), alone) as reading:
                    given = leaf
                    for control in self.run.acting():
                        given = control.model_input(self.run, given, self.run.sigma)
                    comfy.samplers.calc_cond_batch(self.guider.inner_model, [conds[role]], given, sigma, options)
                    if not reading.maps:
                        raise ValueError(
                            f"No attention was computed for the {role} prompt at sigma {self.run.sigma:.3f}: it is "
                            "limited to other steps (Conditioning Set Timestep Range), or another node skips calls of "
                            "the model (EasyCache). Remove that, or move MAG-Edit's start and end."
                        )
                    value = loss(reading.maps)
                    return None if value is None else gradient(value, [leaf])[0]

            yield slope

    def _conditioning(self, role: str) -> list[dict[str, Any]]:
        conds = self.guider.conds.get(role)
        if not conds:
            raise ValueError(
                f"The sampler's guider has no {role} conditioning, which MAG-Edit reads its words in. Use KSampler or "
                "a CFG Guider."
            )
        return conds


def left_early(run: Run, x: Tensor, call: Callable[[], Tensor]) -> Tensor:
    """A UNet call that may end at the last map that it is made for; its result is then zeros, which nobody reads."""
    try:
        return call()
    except Enough:
        return torch.zeros_like(x)


def work(family: Family, scale: int, checkpointing: bool) -> float:
    """UNet evaluations that one pass and its way back to the latent are worth.

    With checkpointing each block is computed again.
    """
    return FORWARD[family.name][scale] * (1 + BACK + checkpointing)


def _last(layers: Sequence[Layer]) -> Layer:
    return max(layers, key=lambda layer: layer.index)


def _kept_whole(options: dict[str, Any], lasts: set[tuple[str, int]]) -> dict[str, Any]:
    """Options under which blocks that are left by `Enough` are not checkpointed: they never come to their end."""
    transformer = options["transformer_options"]
    name = "forward_timestep_embed_patch"
    handlers = transformer["patches"][name]
    behind = next(handler for kind, handler in handlers if kind is SpatialTransformer)

    def handler(layer: Any, x: Tensor, emb: Tensor, context: Any, inner: dict[str, Any], *rest: Any) -> Tensor:
        if tuple(inner["block"]) not in lasts:
            return behind(layer, x, emb, context, inner, *rest)
        out = layer(x, context, inner)
        if "transformer_index" in inner:
            inner["transformer_index"] += 1
        return out

    patches = {**transformer["patches"], name: [(SpatialTransformer, handler), *handlers]}
    return {**options, "transformer_options": {**transformer, "patches": patches}}
