"""A value on its way from the device, which the device's queue does not stop for."""

from __future__ import annotations

import torch
from torch import Tensor


class Arriving:
    """A tensor that is copied to the CPU behind what the device has to do; who reads it waits, if it is not there yet.

    A sampler reads a noise level from the device in every step, so what was sent in the step before has arrived by
    then. On devices without pinned memory (MPS, DirectML) the copy is made at once.
    """

    def __init__(self, value: Tensor) -> None:
        events = getattr(getattr(torch, value.device.type, None), "Event", None)
        if events is None or value.device.type in ("cpu", "mps"):
            self._value, self._event = value.cpu(), None
            return
        # Only into pinned memory does a card copy without a stop.
        self._value = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        self._value.copy_(value, non_blocking=True)
        self._event = events()
        self._event.record()

    def get(self) -> Tensor:
        """The value, on the CPU."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        return self._value
