"""Gradients through the host's UNet: the one way in which the pack differentiates it.

Nodes run in inference mode, on weights that were loaded in it; neither can be differentiated. In here inference
mode is left, weights that autograd could not save are wrapped anew with the same values, or copied as the host
fetches them, half precision is computed with in float32, and the UNet's options are completed by what a backward pass
needs. Weights never get a gradient, the options are the caller's own copy, and what is switched on the loaded model is
switched back at the end, however that comes: the run's other passes stay what they are without a gradient.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import comfy.model_management
import torch
from comfy.ldm.modules.attention import SpatialTransformer, attention_pytorch
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .marks import KEY
from .older import inference_dtype, is_dynamic
from .recompute import Checkpoints

COMPUTE = torch.float32
"""What half precision is differentiated in."""
GRAPH_ROWS = {False: 6, True: 3}
"""Rows of plain sampling that take as much memory as one row with its graph, by checkpointing (SD1.5, 512 px), both in
one precision."""


def for_gradients(model: Any, checkpointing: bool) -> Any:
    """A clone of a host MODEL whose runs may be differentiated.

    The host is told to make room for a graph; nothing else is changed, so that the clone shares the loaded weights.

    Raises:
        ValueError: quantised weights (fp8, GGUF), which cannot be differentiated.
    """
    clone, dtype = model.clone(), model.model_dtype()
    if not dtype.is_floating_point or dtype.itemsize < 2:
        raise ValueError(
            f"Gradients need a model with fp16, bf16 or fp32 weights; this one has {dtype}. Load the checkpoint "
            "without quantisation (weight_dtype default), or do without MAG-Edit, Null-Text Inversion "
            "and Dynamic Prompt Learning; Negative-Prompt Inversion and the other edits need no gradient."
        )
    rows = GRAPH_ROWS[checkpointing]

    def prepare(executor: Any, patcher: Any, noise_shape: Sequence[int], conds: Any, *args: Any, **kwargs: Any) -> Any:
        # The host counts in the run's own precision.
        wider = COMPUTE.itemsize // min(COMPUTE.itemsize, inference_dtype(patcher.model).itemsize)
        return executor(patcher, [noise_shape[0] * rows * wider, *noise_shape[1:]], conds, *args, **kwargs)

    key = f"{KEY} gradients"
    clone.remove_wrappers_with_key(WrappersMP.PREPARE_SAMPLING, key)
    clone.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, key, prepare)
    return clone


@contextmanager
def differentiable(model: Any, options: dict[str, Any], checkpointing: bool = False) -> Iterator[dict[str, Any]]:
    """Within it, calls of a loaded model build a graph; take x, sigma and conditionings through `plain` first.

    Args:
        model: the host's BaseModel of the run (`guider.inner_model`).
        options: the run's model options.
        checkpointing: keep only what enters each block, and compute the block again on the way back.

    Yields:
        model options for `calc_cond_batch`, to be used in here.
    """
    patcher = model.current_patcher
    with torch.inference_mode(False), ExitStack() as undo:
        if inference_dtype(model).itemsize < COMPUTE.itemsize:
            _compute_wider(model, undo)
        own = model.get_dtype() if is_dynamic(patcher) else None
        with constant(model.diffusion_model, patcher.load_device, inference_dtype(model), own):
            yield _options(options, Checkpoints(undo) if checkpointing else None)


@contextmanager
def constant(
    module: torch.nn.Module, device: torch.device, dtype: torch.dtype, own: torch.dtype | None = None
) -> Iterator[None]:
    """Within it, calls of a loaded module build a graph in which its weights are constants.

    Args:
        device, dtype: where and in what the host computes.
        own: precision to which the host casts weights as it fetches them, where it loads dynamically.
    """
    with torch.inference_mode(False), ExitStack() as undo:
        _freeze(module, device, dtype, own, undo)
        with torch.enable_grad(), _emptied():
            yield


@contextmanager
def _emptied() -> Iterator[None]:
    """Within it, a way back that is cut off leaves nothing waiting in PyTorch.

    What has not been worked off stays in the thread's queue, with its graph, until a later way back comes to it: the
    one here begins at the oldest node, which is taken after all others.
    """
    leaf = torch.zeros((), requires_grad=True)
    oldest = leaf * 1
    try:
        yield
    except BaseException:
        torch.autograd.grad(oldest, leaf)
        raise


def gradient(value: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The gradient of a scalar, zero for inputs that it does not depend on; within `differentiable`.

    Nothing waits for the device; whoever reads something of it then has to read `finite` of the gradient too.
    """
    comfy.model_management.throw_exception_if_processing_interrupted()
    if not value.requires_grad:
        return tuple(torch.zeros_like(x) for x in inputs)
    return torch.autograd.grad(value, list(inputs), allow_unused=True, materialize_grads=True)


def finite(gradients: Sequence[Tensor]) -> Tensor:
    """Whether all numbers of gradients are finite, as a bool tensor () on their device, for `check_finite`."""
    return torch.stack([torch.isfinite(found).all() for found in gradients]).all()


def check_finite(is_finite: float) -> None:
    """Raise ValueError unless what has been read of `finite` is true."""
    if not is_finite:
        raise ValueError(
            "The gradient through the UNet is not finite. Take smaller steps or a smaller scale; if the first step of "
            "all fails too, the image or a prompt holds numbers that are not finite."
        )


def plain(value: Any) -> Any:
    """A copy of tensors, conditionings and containers of them that autograd may save; the rest is shared.

    ControlNets of conditionings count as constants: what they add is not differentiated.
    """
    if isinstance(value, Tensor):
        with torch.inference_mode(False):
            return value.detach().clone()
    if isinstance(value, dict):
        return {
            key: _Constant(entry) if key == "control" and entry is not None else plain(entry)
            for key, entry in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)(plain(entry) for entry in value)
    if hasattr(value, "cond") and hasattr(value, "process_cond"):
        twin = copy.copy(value)
        twin.cond = plain(value.cond)
        return twin
    return value


class _Constant:
    """A ControlNet as the UNet's call sees it, without a graph of its own."""

    def __init__(self, control: Any) -> None:
        self._control = control

    def get_control(self, x_noisy: Tensor, t: Tensor, cond: Any, *args: Any, **kwargs: Any) -> Any:
        """The host's call of a ControlNet: its residuals, as tensors that autograd may save."""
        with torch.no_grad():
            return plain(self._control.get_control(x_noisy.detach(), t, cond, *args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._control, name)


def _compute_wider(model: Any, undo: ExitStack) -> None:
    """Compute in COMPUTE, in which small gradients survive: the host casts its weights to their input's type.

    Every weight of another type is then a fresh tensor for its layer, whether it was offloaded or not.
    """
    _set(model, "manual_cast_dtype", COMPUTE, undo)
    for module in model.diffusion_model.modules():
        if hasattr(module, "comfy_cast_weights"):
            _set(module, "comfy_cast_weights", True, undo)


def _set(owner: Any, name: str, value: Any, undo: ExitStack) -> None:
    """Set what is no parameter, buffer or module of its owner, until `undo` is closed."""
    present = vars(owner)
    if name in present:
        undo.callback(setattr, owner, name, present[name])
    else:
        undo.callback(present.pop, name, None)
    setattr(owner, name, value)


def _freeze(
    network: torch.nn.Module, device: torch.device, dtype: torch.dtype, own: torch.dtype | None, undo: ExitStack
) -> None:
    """Make weights ones that autograd can save and does not differentiate.

    Args:
        device, dtype: where and in what the host computes.
        own: precision to which the host casts weights as it fetches them, where it loads dynamically.
        undo: gives back flags, and the functions by which the host fetches weights.
    """
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            # Weights that wait elsewhere come in the model's own precision, whatever the file's.
            given = parameter.dtype if parameter.device == device or own is None else own
            used_itself = given == dtype
            if used_itself and parameter.device != device:
                # The host fetches them into a buffer that later layers overwrite, and calls these on what it fetched.
                functions = f"{name}_function"
                _set(module, functions, [*getattr(module, functions, []), torch.clone], undo)
            elif used_itself and not _saveable(parameter):
                # One weight at a time; the values are the same, so it may stay.
                setattr(module, name, torch.nn.Parameter(parameter.detach().clone(), requires_grad=False))
                continue
            if parameter.requires_grad:
                undo.callback(_set_flag, parameter, True)
                _set_flag(parameter, False)


def _set_flag(parameter: torch.nn.Parameter, wanted: bool) -> None:
    """Set requires_grad, which inference tensors allow in inference mode only."""
    with torch.inference_mode(parameter.is_inference()):
        parameter.requires_grad_(wanted)


def _saveable(tensor: Tensor) -> bool:
    """Whether autograd may save a tensor: no inference tensor, and not what moving one outside the mode leaves."""
    if tensor.is_inference():
        return False
    try:
        return tensor._version >= 0
    except RuntimeError:  # "do not track version counter"
        return False


def _options(options: dict[str, Any], checkpoints: Checkpoints | None) -> dict[str, Any]:
    """Model options for a backward pass: PyTorch's own attention, one device, and checkpoints around blocks.

    Other attention functions have no backward pass, or lose it when memory is short.
    """
    transformer = dict(options.get("transformer_options", {}))
    transformer["optimized_attention_override"] = _attention
    patches = dict(transformer.get("patches", {}))
    name = "input_block_patch_after_skip"
    patches[name] = [*patches.get(name, []), _apart_from_skip]
    if checkpoints is not None:
        name = "forward_timestep_embed_patch"
        others = [(kind, partial(checkpoints.behind, patch)) for kind, patch in patches.get(name, [])]
        own = [(kind, checkpoints.block) for kind in (SpatialTransformer, ResBlock)]
        patches[name] = [*others, *own]  # the first one counts
    transformer["patches"] = patches
    return {key: value for key, value in options.items() if key != "multigpu_clones"} | {
        "transformer_options": transformer
    }


def _attention(_: Any, *args: Any, **kwargs: Any) -> Tensor:
    return attention_pytorch(*args, **kwargs)


def _apart_from_skip(h: Tensor, _: Any) -> Tensor:
    """The host's input_block_patch_after_skip: what goes on down, apart from what the skip keeps.

    ControlNets' residuals are added to the skip in place, and the next block has saved what it was given.
    """
    return h.clone()
