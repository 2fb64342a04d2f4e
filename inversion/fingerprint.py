"""Content hashes of models, prompts, inversions and settings; the names of what is kept on disk."""

from __future__ import annotations

import hashlib
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

SAMPLE = 1 << 16
"""Values of one weight that are looked at; models that were trained apart differ in nearly all of them."""

WEIGHT_VALUES = 256
"""The same where a run only warns."""

ALGORITHM = 2
"""Counted up when an inversion comes out otherwise than before, so that what older versions kept is not found."""


class UnknownError(Exception):
    """Something whose content cannot be told; the text says what."""


class Digest:
    """A hash of nested values.

    Args:
        values: of each tensor about so many are looked at, at even distances; None for all.
    """

    def __init__(self, values: int | None = None) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self._values = values

    def add(self, value: Any) -> Digest:
        """Take in numbers, texts, tensors, and containers and dataclasses of them.

        Raises:
            UnknownError: for anything else.
        """
        self._hash.update(f"|{type(value).__name__}:".encode())
        if isinstance(value, Tensor):
            self._tensor(value)
        elif value is None or isinstance(value, str | int | float | bool | torch.dtype):
            self._hash.update(repr(value).encode())
        elif isinstance(value, list | tuple):
            self._hash.update(f"{len(value)}".encode())
            for entry in value:
                self.add(entry)
        elif isinstance(value, dict):
            self.add(sorted(value, key=str))
            for key in sorted(value, key=str):
                self.add(value[key])
        elif is_dataclass(value) and not isinstance(value, type):
            self.add({field.name: getattr(value, field.name) for field in fields(value)})
        elif (weights := getattr(value, "weights", None)) is not None:  # the host's LoRA and its kin
            self.add(weights)
        else:
            raise UnknownError(f"{type(value).__name__}")
        return self

    def sampled(self, tensor: Tensor) -> Digest:
        """Take in a tensor by values at even distances, where it is large."""
        flat = tensor.detach().flatten()
        self.add(tuple(tensor.shape))
        return self.add(flat[:: flat.numel() // SAMPLE + 1])

    def _tensor(self, tensor: Tensor) -> None:
        if type(tensor) not in (Tensor, torch.nn.Parameter):
            raise UnknownError(f"a tensor of type {type(tensor).__name__}")
        self._hash.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        step = tensor.numel() // self._values + 1 if self._values else 1
        held = (tensor.detach().flatten()[::step] if step > 1 else tensor.detach()).cpu().contiguous()
        self._hash.update(held.reshape(-1).view(torch.uint8).numpy().data)

    def name(self) -> str:
        """32 hexadecimal digits."""
        return self._hash.hexdigest()


def add_model(digest: Digest, model: Any) -> None:
    """Take in a host MODEL: its weights without LoRAs, the LoRAs, and its noise levels.

    Raises:
        UnknownError: other nodes have changed it in a way whose content cannot be told.
    """
    options = {key: value for key, value in model.model_options.items() if value}
    if options.pop("transformer_options", None) or options:
        raise UnknownError("the model carries patches of other nodes")
    changes = (model.wrappers, model.callbacks, model.injections, model.hook_patches, model.weight_wrapper_patches)
    if any(_filled(part) for part in changes) or set(model.object_patches) - {"model_sampling"}:
        raise UnknownError("the model carries wrappers or hooks of other nodes")
    sampling = model.get_model_object("model_sampling")
    digest.add([[kind.__name__ for kind in type(sampling).__mro__], sampling.sigmas])
    digest.add([model.model_dtype(), model.model.manual_cast_dtype])
    _add_weights(digest, model)


def _add_weights(digest: Digest, model: Any) -> None:
    """Take in a host MODEL's weights without LoRAs, and the LoRAs."""
    for name, (weight, *patches) in sorted(model.get_key_patches("diffusion_model.").items()):
        digest.add(name).sampled(weight[0])
        for strength, patch, strength_model, offset, function in patches:
            if function is not None:
                raise UnknownError("a weight patch with a function of its own")
            digest.add([strength, patch, strength_model, offset])


def weights_name(model: Any) -> str:
    """The name of a host MODEL's weights with its LoRAs, by a few values of each; empty where they cannot be told.

    Every run of an edit asks for it, so that it has to cost next to nothing.
    """
    digest = Digest(WEIGHT_VALUES)
    try:
        _add_weights(digest, model)
    except Exception:  # whatever other nodes' objects raise when they are looked at
        return ""
    return digest.name()


def _filled(value: Any) -> bool:
    """Whether a nest of containers holds anything."""
    if isinstance(value, dict):
        return any(_filled(entry) for entry in value.values())
    return bool(value)


def fingerprint(model: Any, *values: Any) -> str:
    """The name of what a model makes of some inputs.

    Raises:
        UnknownError: the content of one of them cannot be told.
    """
    digest = Digest()
    digest.add(ALGORITHM)
    add_model(digest, model)
    return digest.add(list(values)).name()
