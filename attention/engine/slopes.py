"""Cross-attention maps with a gradient to the latent, at the price of that part of the UNet which makes them.

The pass goes the host's own way with the run's controls on, conditional rows only. The layer whose map is the last
that is wanted raises `Enough`; the engine's wrapper around the UNet catches it, so what lies behind that layer is
neither run nor kept for the way back, and the host and other packs see a call that ends as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.samplers
from comfy.ldm.modules.attention import SpatialTransformer
from torch import Tensor

from ...host.families import Layer
from ...host.gradients import differentiable, gradient, plain
from .acts import Site
from .checks import cure_of_replaced
from .control import Control, moves
from .reading import Maps, Reading
from .run import Run

Slope = Callable[..., Tensor | None]
"""A pass and its way back, see `Network.slopes`."""


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
        that one acts, and the maps are those of its own layers. The slope (B, C, h, w) is that of the scalar by x;
        whether it is finite has to be checked (`host.gradients.finite`).

        Raises:
            ValueError: the guider has no such conditioning.
        """
        each = [self.run.layers(control, Site.CROSS) for control in self.run.controls if moves(control)]
        lasts = {_last(found).block for found in (layers, *each) if found}
        with differentiable(self.guider.inner_model, self.options, checkpointing) as options:
            if checkpointing:
                options = kept_whole(options, lasts)
            conds: dict[str, Any] = {}
            sigma = plain(self.timestep)

            def slope(
                x: Tensor, loss: Callable[[Maps], Tensor | None], role: str = "positive", alone: Control | None = None
            ) -> Tensor | None:
                comfy.model_management.throw_exception_if_processing_interrupted()
                if role not in conds:
                    conds[role] = plain(self._conditioning(role))
                leaf = x.detach().requires_grad_()
                wanted = layers if alone is None else self.run.layers(alone, Site.CROSS)
                with self.run.guided(Reading(wanted), alone) as reading:
                    given = leaf
                    for control in self.run.acting.latents:
                        given = control.given(self.run, self.run.states[control], given, self.run.sigma)
                    comfy.samplers.calc_cond_batch(self.guider.inner_model, [conds[role]], given, sigma, options)
                    if not reading.maps:
                        raise ValueError(
                            f"No attention was computed for the {role} prompt at sigma {self.run.sigma:.3f}: it is "
                            "limited to other steps (Conditioning Set Timestep Range), or another node skips calls of "
                            "the model (EasyCache). Remove that, or move MAG-Edit's start and end."
                        )
                    if reading.wanted - set(reading.maps):
                        raise ValueError(
                            f"{cure_of_replaced(self.run)}: cross-attention is replaced in "
                            f"{len(reading.wanted - set(reading.maps))} of {len(reading.wanted)} layers whose maps "
                            "are to be read."
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


def _last(layers: Sequence[Layer]) -> Layer:
    return max(layers, key=lambda layer: layer.index)


def kept_whole(options: dict[str, Any], lasts: set[tuple[str, int]]) -> dict[str, Any]:
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
