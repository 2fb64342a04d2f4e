"""Where features of the source are kept between runs: on the device, in RAM, or in files of the host's temp folder.

What one step keeps lies in one tensor for each precision, so that it travels in one copy. On its way back it is asked
for a step ahead, on a stream beside the network's where the host has one.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.cli_args
import comfy.model_management
import folder_paths
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .call import Features

OFF, RAM, DEVICE, DISK = SHELVES = ("off", "in RAM", "on the device", "on disk")
"""Where features may be kept."""
Captured = Mapping[Hashable, Mapping[Hashable, Features]]
"""Features by place, and by whose they are."""
Kept = dict[Hashable, dict[Hashable, Features]]
"""The same, to be put where a run looks for them."""
ALIGNED = 64
"""Numbers to a multiple of which parts begin, so that they lie as tensors of their own would: what a kernel makes of
them must not depend on it."""
UNREADABLE = (OSError, safetensors.SafetensorError)
"""What the system and the format raise where a file cannot be written or read."""
LEFT_FREE = 1 << 30
"""Bytes of RAM or of the device that keeping leaves alone."""
_PARTS = "qkv"


@dataclass(frozen=True, eq=False)
class _Part:
    """Where a tensor lies in its step's."""

    dtype: torch.dtype
    start: int
    shape: torch.Size


@dataclass(frozen=True, eq=False)
class Parcel:
    """The features of one step, packed.

    Attributes:
        flat: by precision the numbers (n,); on a shelf on disk the path of their file.
        parts: by place, whose they are and name ("q", "k", "v").
        fields: by place and whose they are, `Features`' ahead and words.
        bytes: that it takes where it lies.
    """

    flat: Any
    parts: dict[tuple[Hashable, Hashable, str], _Part]
    fields: dict[tuple[Hashable, Hashable], tuple[int, int]]
    bytes: int

    def unpacked(self, flat: Mapping[torch.dtype, Tensor]) -> Kept:
        """Its features, as views of tensors (n,) on the device that they are read on."""
        found: Kept = {}
        for (place, whose), (ahead, words) in self.fields.items():
            there = {name: self.parts.get((place, whose, name)) for name in _PARTS}
            tensors = {
                name: flat[part.dtype][part.start : part.start + part.shape.numel()].view(part.shape)
                for name, part in there.items()
                if part is not None
            }
            found.setdefault(place, {})[whose] = Features(**tensors, ahead=ahead, words=words)
        return found


def _each(captured: Captured) -> Iterator[tuple[tuple[Hashable, Hashable, str], Tensor]]:
    """The tensors of features, by place, whose they are and name."""
    for place, owners in captured.items():
        for whose, features in owners.items():
            for name in _PARTS:
                tensor = getattr(features, name)
                if tensor is not None:
                    yield (place, whose, name), tensor


def _pack(captured: Captured) -> tuple[dict[torch.dtype, Tensor], dict[Any, _Part]]:
    """Features in one tensor for each precision; what stands there twice (a block's residual) is packed once."""
    pieces: dict[torch.dtype, list[Tensor]] = {}
    lengths: dict[torch.dtype, int] = {}
    parts, seen = {}, {}
    for key, tensor in _each(captured):
        if id(tensor) not in seen:
            start, count = lengths.get(tensor.dtype, 0), tensor.numel()
            seen[id(tensor)] = _Part(tensor.dtype, start, tensor.shape)
            gap = -count % ALIGNED
            pieces.setdefault(tensor.dtype, []).extend([tensor.reshape(-1), tensor.new_zeros(gap)])
            lengths[tensor.dtype] = start + count + gap
        parts[key] = seen[id(tensor)]
    return {dtype: torch.cat(of) for dtype, of in pieces.items()}, parts


@dataclass(eq=False)
class Shelf:
    """A place of one inversion's features, and how they get there and back.

    Attributes:
        where: one of SHELVES.
    """

    where: str
    _coming: tuple[Parcel, dict[torch.dtype, Tensor], Any] | None = None
    _folder: Path | None = None
    _files: int = 0

    def put(self, captured: Captured) -> Parcel:
        """Keep copies of features.

        Raises:
            OSError: on disk, and there is no room for a file.
        """
        flat, parts = _pack(captured)
        fields = {
            (place, whose): (features.ahead, features.words)
            for place, owners in captured.items()
            for whose, features in owners.items()
        }
        if self.where == DISK:
            path = self._written(flat)
            parcel = Parcel(path, parts, fields, sum(tensor.nbytes for tensor in flat.values()))
            weakref.finalize(parcel, path.unlink, missing_ok=True)
            return parcel
        kept = flat if self.where == DEVICE else {dtype: _in_ram(tensor) for dtype, tensor in flat.items()}
        return Parcel(kept, parts, fields, sum(taken(tensor.nbytes, tensor.is_pinned()) for tensor in kept.values()))

    def get(self, parcel: Parcel, device: torch.device, then: Parcel | None) -> Kept:
        """Features on a device, and another parcel set on its way there."""
        if self._coming is None or self._coming[0] is not parcel:
            self._coming = (parcel, *self._sent(parcel, device))
        _, flat, stream = self._coming
        comfy.model_management.sync_stream(device, stream)
        # The host's sampler reads the noise level from the device in every step: whoever read the memory that this
        # takes on the stream is done by then.
        self._coming = None if then is None else self._ahead(then, device)
        return parcel.unpacked(flat)

    def _ahead(self, parcel: Parcel, device: torch.device) -> tuple[Parcel, dict[torch.dtype, Tensor], Any] | None:
        """A parcel on its way; None where its file is gone, which its own step will tell."""
        try:
            return parcel, *self._sent(parcel, device)
        except UNREADABLE:
            return None

    def rest(self) -> None:
        """Let go of what is on its way: the run is over."""
        self._coming = None

    def room(self, device: torch.device) -> int:
        """Bytes that may still be kept here without harm."""
        if self.where == DISK:
            return shutil.disk_usage(folder_paths.get_temp_directory()).free - LEFT_FREE if self._made() else 0
        place = device if self.where == DEVICE else torch.device("cpu")
        free: Any = comfy.model_management.get_free_memory(place)
        return int(free) - LEFT_FREE

    def _sent(self, parcel: Parcel, device: torch.device) -> tuple[dict[torch.dtype, Tensor], Any]:
        """A parcel's numbers on a device, or on their way to it on a stream."""
        management, flat = comfy.model_management, parcel.flat
        if self.where == DEVICE:
            return flat, None
        if self.where == DISK:
            loaded = safetensors.torch.load_file(flat)
            flat = {tensor.dtype: tensor for tensor in loaded.values()}
        stream = management.get_offload_stream(device)
        late = management.device_supports_non_blocking(device) and self.where == RAM
        sent = {
            dtype: management.cast_to(tensor, device=device, non_blocking=late, stream=stream)
            for dtype, tensor in flat.items()
        }
        return sent, stream

    def _written(self, flat: Mapping[torch.dtype, Tensor]) -> Path:
        """A file of numbers, whole or not at all."""
        self._files += 1
        path = self._made() / f"{self._files}.safetensors"
        part = path.with_suffix(".part")
        try:
            safetensors.torch.save_file({str(dtype): tensor.cpu() for dtype, tensor in flat.items()}, part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return path

    def _made(self) -> Path:
        """The folder of this shelf, which goes with it."""
        if self._folder is None:
            root = Path(folder_paths.get_temp_directory()) / "attention-edit"
            root.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(dir=root))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder


def _in_ram(tensor: Tensor) -> Tensor:
    """A copy in RAM; pinned where a card can then fetch it beside its work."""
    if tensor.device.type == "cpu":
        return tensor
    if comfy.cli_args.args.disable_pinned_memory:
        return tensor.cpu()
    try:
        kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    except RuntimeError:  # no more memory may be pinned, or devices of this kind pin none
        return tensor.cpu()
    kept.copy_(tensor, non_blocking=True)
    return kept


def taken(count: int, pinned: bool) -> int:
    """Bytes of memory that so many take: PyTorch hands out pinned memory in powers of two."""
    return 1 << (count - 1).bit_length() if pinned and count else count


def release() -> None:
    """Give pinned memory that nothing lies in back to the system; PyTorch would hold it for the next that asks."""
    empty = getattr(torch._C, "_host_emptyCache", None)
    if empty is not None and torch.cuda.is_initialized():
        empty()
