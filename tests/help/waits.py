"""Counts what makes the CPU wait for a device: values that Python is given, and shapes that depend on values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_READS = (Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.__index__, Tensor.cpu)
_READS += (Tensor.nonzero, Tensor.numpy, Tensor.masked_select, torch.nonzero, torch.masked_select, torch.equal)


class Waits(TorchFunctionMode):
    """A context in which `count` goes up with every wait."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by PyTorch for each of its functions."""
        picks = func in {Tensor.__getitem__, Tensor.__setitem__}
        places = args[1] if picks and isinstance(args[1], tuple) else args[1:2] if picks else ()
        if func in _READS or any(isinstance(place, Tensor) and place.dtype is torch.bool for place in places):
            self.count += 1
        return func(*args, **(kwargs or {}))
