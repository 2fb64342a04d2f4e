"""The simulated device of device.cpp: built when it is first needed, and made PyTorch's device "simulated".

ComfyUI started with --directml asks the module torch_directml for its device; the one in stand_in/ answers with this.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from counts import Counts, site

HERE = Path(__file__).resolve().parent
NAME = "simulated"
FLAGS = ("-std=c++20", "-O1", "-shared", "-fPIC", "-w")


def compiler() -> str | None:
    """The C++ compiler: $CXX, else g++."""
    return shutil.which(os.environ.get("CXX", "g++"))


def _build() -> Path:
    """The compiled library in the user's cache folder; about a minute when it is not there yet."""
    from machine.cache_folder import cache_folder, locked

    source = HERE / "device.cpp"
    texts = (file.read_text("utf-8") for file in (source, HERE / "memory.h"))
    made_of = (*texts, torch.__version__, *FLAGS)
    folder = cache_folder() / "simulated-gpu"
    library = folder / f"{hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]}.so"
    with locked(folder):
        if library.is_file():
            return library
        root = Path(torch.__file__).parent
        includes = [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}"]
        links = [f"-L{root / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{root / 'lib'}"]
        part = library.with_suffix(".part")
        command = [str(compiler()), *FLAGS, *includes, str(source), "-o", str(part), *links]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"The simulated device does not compile: {' '.join(command)}\n{done.stderr[-4000:]}")
        part.replace(library)
    return library


def _module() -> types.ModuleType:
    """What PyTorch and the host ask of torch.simulated: there is one device."""

    class Device:
        def __init__(self, *_: object) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    class Event:
        """A place in the device's queue: to wait for it costs a wait, unless the host has waited since."""

        def record(self) -> None:
            self.waits = _read()[0]

        def synchronize(self) -> None:
            if _read()[0] == self.waits:
                _native.simulated_wait()

    answers = {
        **{"is_available": True, "device_count": 1, "current_device": 0, "_is_in_bad_fork": False},
        **{"_exchange_device": 0, "_maybe_exchange_device": 0, "manual_seed": None, "manual_seed_all": None},
        **{"get_rng_state": torch.empty(0, dtype=torch.uint8), "set_rng_state": None},
        "get_amp_supported_dtype": [torch.float16, torch.bfloat16],
    }
    module = types.ModuleType(f"torch.{NAME}")
    for name, answer in answers.items():
        setattr(module, name, lambda *_, answer=answer: answer)
    vars(module).update(device=Device, Event=Event)
    return module


def _register() -> ctypes.CDLL:
    library = _build()
    torch.ops.load_library(str(library))
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, _module())
    torch.version.cuda = None  # else the host asks CUDA for its card's properties
    return ctypes.CDLL(str(library))


_LISTENER = ctypes.CFUNCTYPE(None, ctypes.c_int)
_native = _register()
_native.simulated_fail_at.argtypes = [ctypes.c_int64]
_native.simulated_listen.argtypes = [ctypes.c_void_p]
DEVICE = torch.device(NAME, 0)


def _read() -> list[int]:
    numbers = (ctypes.c_int64 * 5)()
    _native.simulated_counts(numbers)
    return list(numbers)


def live() -> int:
    """Bytes in use now."""
    return _read()[2]


@contextmanager
def counted() -> Iterator[Counts]:
    """Count what the block costs, also by the line that did it."""
    counts = Counts()
    listening = _LISTENER(lambda event: counts.sites.update([(event, site())]))
    _native.simulated_reset()
    before = live()
    _native.simulated_listen(ctypes.cast(listening, ctypes.c_void_p))
    try:
        yield counts
    finally:
        _native.simulated_listen(None)
        counts.waits, counts.to_device, after, peak, counts.allocations = _read()
        counts.live, counts.peak = after - before, peak - before


@contextmanager
def out_of_memory(allocation: int) -> Iterator[None]:
    """The n-th allocation of the block raises torch.OutOfMemoryError."""
    _native.simulated_reset()
    _native.simulated_fail_at(allocation)
    try:
        yield
    finally:
        _native.simulated_fail_at(0)


def snapshot() -> Callable[[], tuple[int, int]]:
    """Waits and copies to the device since now, without touching the counters of `counted`."""
    waits, copies = _read()[:2]
    return lambda: (_read()[0] - waits, _read()[1] - copies)
