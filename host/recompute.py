"""Blocks of the UNet that keep only what enters them, and are computed again on the way back."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from weakref import WeakValueDictionary

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from torch import Tensor
from torch.utils.checkpoint import checkpoint


class _Options(dict[str, Any]):
    """Options of a block, of which is known as long as a graph holds them."""


class Checkpoints:
    """Blocks of the UNet that are computed again on the way back, with what they were called with.

    A graph that is cut off on its way back keeps the options of its blocks. They lead to the run, and the run to the
    graph, past Python's own search for circles: so they are emptied at the end.
    """

    def __init__(self, undo: ExitStack) -> None:
        self._waiting: WeakValueDictionary[int, _Options] = WeakValueDictionary()
        undo.callback(self._forget)

    def _forget(self) -> None:
        for options in list(self._waiting.values()):
            options.clear()

    def block(
        self,
        layer: torch.nn.Module,
        x: Tensor,
        emb: Tensor,
        context: Tensor | None,
        options: dict[str, Any],
        *_: Any,
    ) -> Tensor:
        """The host's forward_timestep_embed_patch: one block."""
        if isinstance(layer, ResBlock):
            return self.again(layer, x, emb)
        out = self.again(layer, x, context, options)
        if "transformer_index" in options:
            options["transformer_index"] += 1
        return out

    def behind(self, patch: Any, layer: torch.nn.Module, *inputs: Any) -> Tensor:
        """Whoever's patch of a block, with the block that it stands on checkpointed."""
        return patch(_Again(layer, self), *inputs)

    def again(self, layer: torch.nn.Module, *inputs: Any) -> Tensor:
        """A block's call; its options are copied, because the host writes the present block into them and goes on."""
        if not any(isinstance(value, Tensor) and value.requires_grad for value in inputs):
            return layer(*inputs)  # ahead of everything that is differentiated: there is nothing to come back for
        given = [_Options(value) if isinstance(value, dict) else value for value in inputs]
        self._waiting.update({id(value): value for value in given if isinstance(value, _Options)})
        out: Any = checkpoint(layer, *given, use_reentrant=False, preserve_rng_state=False)
        return out


class _Again:
    """A block that is computed again on the way back, in the place of the one that a patch is handed."""

    def __init__(self, layer: torch.nn.Module, checkpoints: Checkpoints) -> None:
        self._layer, self._checkpoints = layer, checkpoints

    def __call__(self, *inputs: Any) -> Tensor:
        return self._checkpoints.again(self._layer, *inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)
