"""Memory that features of the source and of branches take, told to the host before it loads the model for a run.

The host makes room for a batch by an estimate that knows nothing of what is kept beside it; without this it would
offload too little and run out of memory in the first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

from ...host.families import Family, family_of
from ...host.older import inference_dtype
from ...host.transformers import width_of
from .acts import Act, Site
from .plan import Plan, plan_of
from .recorded import held_of
from .shelves import DEVICE

TEXT = 77
"""Text tokens that a prompt is taken to have; longer ones make little of the sum."""


def kept_bytes(plan: Plan, family: Family, model: Any, size: tuple[int, int], rows: int = 2) -> int:
    """Most bytes of features that are held at one time, of the source and of branches, by what the plan's acts read.

    Args:
        plan: the controls and their inversion. model: the host's MODEL, for widths and precision.
        size: (h, w) of the latent. rows: of the sampler's batch; as many as the two halves of an image that one
            other is sampled beside.
    """
    if plan.inversion is None:
        return 0
    every = [act for control in plan.controls for act in control.acts_on(family) if act.reads]
    acts = [act for act in every if not act.of]
    unet, item = model.get_model_object("diffusion_model"), inference_dtype(model.model).itemsize
    halves = 2 if any(act.own_half for act in acts) else 1
    source: dict[tuple[Any, ...], int] = {}
    beside: dict[tuple[Any, ...], int] = {}
    for act in every:
        kept = beside if act.of else source
        kept |= {(act.of, place): numbers for place, numbers in _parts(act, family, unet, size).items()}
    return (sum(source.values()) * plan.inversion.batch * halves + sum(beside.values()) * rows) * item


def source_numbers(acts: Sequence[Act], family: Family, model: Any, size: tuple[int, int]) -> int:
    """Numbers that acts read of one row of the source; what several read counts once."""
    unet, found = model.get_model_object("diffusion_model"), {}
    for act in acts:
        found |= _parts(act, family, unet, size)
    return sum(found.values())


def _parts(act: Act, family: Family, unet: Any, size: tuple[int, int]) -> dict[tuple[Any, ...], int]:
    """Numbers of one source row by site, place and part; what several acts read is kept once."""
    found: dict[tuple[Any, ...], int] = {}
    if family.joint:
        tokens = ceil(size[0] / family.layers[0].scale) * ceil(size[1] / family.layers[0].scale)
        places = ((layer, part) for layer in act.layers for part in act.reads)
        return {(act.at, layer.index, part): (tokens + TEXT) * width_of(unet) for layer, part in places}
    for layer in act.layers:
        tokens = ceil(size[0] / layer.scale) * ceil(size[1] / layer.scale)
        block = _unet_block(unet, layer.block)
        width = next(m for m in block if hasattr(m, "transformer_blocks")).transformer_blocks[0].attn1.to_q.out_features
        for part in act.reads:
            length = tokens if part == "q" or act.at is Site.SELF else TEXT
            found[act.at, layer.index, part] = length * width
    for place in act.blocks:
        residual = next(m for m in _unet_block(unet, place) if hasattr(m, "out_channels"))
        scale = next((layer.scale for layer in family.layers if layer.block == place), 1)
        tokens = ceil(size[0] / scale) * ceil(size[1] / scale)
        found[act.at, place] = len(act.reads) * residual.out_channels * tokens
    return found


def _unet_block(unet: Any, place: tuple[str, int]) -> Any:
    """A UNet block by the host's name."""
    name, number = place
    return unet.middle_block if name == "middle" else getattr(unet, f"{name}_blocks")[number]


def make_room(executor: Any, patcher: Any, noise_shape: Sequence[int], conds: Any, *args: Any, **kwargs: Any) -> Any:
    """Wrap the host's preparation of a run: rows beside those of the batch stand for what is kept."""
    plan, size = plan_of(patcher), (int(noise_shape[-2]), int(noise_shape[-1]))
    kept = kept_bytes(plan, family_of(patcher), patcher, size, int(noise_shape[0]))
    step = kept
    if plan.keeping is not None:
        kept += step  # while a step is packed, or the next one is on its way, there are two
    if plan.keeping is not None and plan.keeping.where == DEVICE and plan.inversion is not None:
        kept += max(0, min(plan.keeping.budget, step * plan.inversion.steps) - held_of(plan.inversion))
    if kept:
        row = patcher.model.memory_required([2, *noise_shape[1:]])  # the host asks for both halves of guidance
        noise_shape = [noise_shape[0] + ceil(kept / max(1, row)), *noise_shape[1:]]
    return executor(patcher, noise_shape, conds, *args, **kwargs)
