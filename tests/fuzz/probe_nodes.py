"""A custom node for a server under test: what the server's process holds in memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
from typing import Any

import psutil
import torch
from comfy.model_patcher import ModelPatcher


def held() -> dict[str, int]:
    """Live tensors and their bytes, model patchers, objects of the pack, and resident bytes, after a collection."""
    for _ in range(3):
        gc.collect()
    with contextlib.suppress(OSError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # else the allocator keeps what is free
    objects = gc.get_objects()
    tensors = [found for found in objects if issubclass(type(found), torch.Tensor)]
    storages = {found.untyped_storage().data_ptr(): found.untyped_storage().nbytes() for found in tensors}
    return {
        "tensors": len(tensors),
        "tensor bytes": sum(storages.values()),
        "patchers": sum(issubclass(type(found), ModelPatcher) for found in objects),
        "of the pack": sum("attention-edit" in str(type(found).__module__) for found in objects),
        "resident": psutil.Process().memory_info().rss,
    }


class Held:
    """Says what is held, anew each time."""

    RETURN_TYPES = ()
    FUNCTION = "tell"
    OUTPUT_NODE = True
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """None but one, by which the host does not take the answer from its cache."""
        return {"required": {"number": ("INT", {"default": 0})}}

    def tell(self, number: int) -> dict[str, Any]:
        """The host's output of a node that shows a text."""
        return {"ui": {"text": [json.dumps(held())]}}


NODE_CLASS_MAPPINGS = {"TestHeld": Held}
