"""A CUDA card with the counters of the simulated device.

PyTorch's own debug mode reports every operation that waits for the card, copies from memory that is not pinned
included; a dispatch mode sees the copies to the card, and counts operations where the simulated device counts
allocations. Operations of the way back run in a thread of their own, which the dispatch mode does not see.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from counts import TO_DEVICE, WAIT, Counts, site
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "cuda"
DEVICE = torch.device(NAME, 0)
torch.backends.cudnn.allow_tf32 = False  # float32 is compared as float32: TF32 keeps 11 of its 24 bits
# Runs with gradients are compared bit for bit; the way back else adds in the order in which threads finish.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
torch.use_deterministic_algorithms(True, warn_only=True)
for _dtype in (torch.float32, torch.float16, torch.bfloat16):
    _ones = torch.ones(8, 8, device=DEVICE, dtype=_dtype)
    _ones @ _ones  # the library's own memory, which stays


class _Watch(TorchDispatchMode):
    """Counts operations and copies to the card, and fails at an operation if told."""

    def __init__(self, fail_at: int = 0) -> None:
        super().__init__()
        self.counts, self.fail_at, self.blocking = Counts(), fail_at, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.counts.allocations += 1
        if self.counts.allocations == self.fail_at:
            raise torch.OutOfMemoryError("The card is out of memory, as told.")
        found = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name in ("to", "_to_copy", "copy_"):
            of = args[1] if name == "copy_" else args[0]
            if of.device.type == "cpu" and found.device.type == NAME:
                given = args[2] if len(args) > 2 else False
                self.blocking += not kwargs.get("non_blocking", given)
                self.counts.to_device += 1
                self.counts.sites.update([(TO_DEVICE, site())])
        return found


_watching: list[_Watch] = []


@contextmanager
def _watched(watch: _Watch) -> Iterator[_Watch]:
    def waited(message: object, *_: object, **__: object) -> None:
        if "synchronizing" in str(message):
            watch.counts.waits += 1
            watch.counts.sites.update([(WAIT, site())])

    torch.cuda.synchronize()
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("always")
        warnings.showwarning = waited
        torch.cuda.set_sync_debug_mode("warn")
        stack.callback(torch.cuda.set_sync_debug_mode, "default")
        _watching.append(watch)
        stack.callback(_watching.remove, watch)
        stack.enter_context(watch)
        yield watch


def live() -> int:
    """Bytes in use now."""
    return torch.cuda.memory_allocated()


@contextmanager
def counted() -> Iterator[Counts]:
    """Count what the block costs, also by the line that did it; blocking copies to the card are no waits."""
    watch = _Watch()
    gc.collect()
    before = live()
    torch.cuda.reset_peak_memory_stats()
    try:
        with _watched(watch):
            yield watch.counts
    finally:
        counts = watch.counts
        counts.waits -= watch.blocking
        counts.live, counts.peak = live() - before, torch.cuda.max_memory_allocated() - before


@contextmanager
def out_of_memory(allocation: int) -> Iterator[None]:
    """The n-th operation of the block raises torch.OutOfMemoryError."""
    with _Watch(allocation):
        yield


def snapshot() -> Callable[[], tuple[int, int]]:
    """Waits and copies to the card since now, within `counted`."""

    def read() -> tuple[int, int]:
        watch = _watching[-1]
        return watch.counts.waits - watch.blocking, watch.counts.to_device

    waits, copies = read()
    return lambda: (read()[0] - waits, read()[1] - copies)
