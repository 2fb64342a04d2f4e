"""What a run costs: UNet evaluations, seconds and memory. One evaluation is one latent through the UNet once."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .caches import remove_caches
from .marks import KEY

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Cost:
    """The cost of a run so far.

    Attributes:
        forward: evaluations, counted in latents.
        backward: evaluations that went back through the UNet too.
        seconds: wall time.
        memory: highest number of bytes above those at the first call; on a CPU the process's, looked at after each.
    """

    device: torch.device
    forward: int = 0
    backward: int = 0
    seconds: float = 0.0
    memory: int = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Cost:
        return self  # there is but one count, however often the host copies a model

    def __call__(self, executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The host's APPLY_MODEL wrapper."""
        if self.forward == 0:
            self._from_here()  # the host has loaded the weights by now, which are not the run's
        self.forward += len(x)
        out = executor(x, *args, **kwargs)
        self.note_memory()
        return out

    def note_memory(self) -> None:
        """Take note of the memory in use."""
        if not _counts_itself(self.device):
            self.memory = max(self.memory, psutil.Process().memory_info().rss - self._start)

    def begin(self) -> None:
        """Start the clock."""
        self._clock = time.perf_counter()
        self._from_here()

    def _from_here(self) -> None:
        """Count memory from what is in use now."""
        self._start = psutil.Process().memory_info().rss
        if _counts_itself(self.device):
            torch.accelerator.reset_peak_memory_stats(self.device)
            self._start = torch.accelerator.memory_allocated(self.device)

    def end(self) -> None:
        """Stop the clock."""
        self.seconds = time.perf_counter() - self._clock
        if _counts_itself(self.device):
            self.memory = torch.accelerator.max_memory_allocated(self.device) - self._start

    def describe(self) -> str:
        """One line for reports."""
        back = f" and {self.backward} backward" if self.backward else ""
        return f"{self.forward} UNet evaluations{back}, {self.seconds:.1f} s, {self.memory / 2**20:.0f} MiB more memory"


def _counts_itself(device: torch.device) -> bool:
    """Whether PyTorch keeps the peak of a device's memory."""
    known = device.type in ("cuda", "xpu")  # of others the allocator keeps no peak, and asking raises
    return known and hasattr(torch, "accelerator") and hasattr(torch.accelerator, "max_memory_allocated")


@contextmanager
def measured(model: Any, name: str = "", planned: str = "") -> Iterator[tuple[Any, Cost]]:
    """A clone of a host MODEL whose evaluations are all made (no cache skips one) and counted, and the count.

    Args:
        name: of the run, for the log; nothing is written without one.
        planned: what it will take, such as "98 UNet evaluations", written before it starts.
    """
    clone, cost = model.clone(), Cost(model.load_device)
    remove_caches(clone)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, f"{KEY} cost", cost)
    if planned:
        log.info("%s plans %s", name, planned)
    cost.begin()
    try:
        yield clone, cost
    finally:
        cost.end()
    if name:
        log.info("%s: %s", name, cost.describe())
