"""Inversions on disk: one safetensors file each, in ComfyUI's output folder under `inversions`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import folder_paths
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..host.conditioning import Conditioning
from .record import Inversion

FORMAT = "attention-edit inversion"
VERSION = "2"
READABLE = ("1", VERSION)
"""Version 1 had no null text and no method."""
SUFFIX = ".safetensors"


def directory() -> Path:
    """Where inversions lie."""
    return Path(folder_paths.get_output_directory()) / "inversions"


def names() -> list[str]:
    """Saved inversions, as paths below `directory`."""
    root = directory()
    return sorted(p.relative_to(root).as_posix() for p in root.rglob(f"*{SUFFIX}")) if root.exists() else []


def path_of(name: str) -> Path:
    """The file of a saved inversion.

    Raises:
        ValueError: the name leads out of the folder, or there is no such file.
    """
    root = directory().resolve()
    path = (root / name).resolve()
    if root not in path.parents:
        raise ValueError(f"{name!r} leads out of {root}; inversions are loaded from there only.")
    if not path.is_file():
        raise ValueError(f"There is no inversion {name!r} in {root}; it holds: {', '.join(names()) or 'nothing'}.")
    return path


def save(inversion: Inversion, prefix: str) -> Path:
    """Save under the next free number, whole or not at all; files that exist are never written again.

    Args:
        prefix: file name, may hold folders; a five-digit number is put behind it.

    Raises:
        ValueError: the prefix leads out of the folder, or the source prompt holds what a file cannot
            (ControlNet, hooks).
    """
    root = directory().resolve()
    stem = (root / prefix).resolve()
    if root not in stem.parents:
        raise ValueError(f"The prefix {prefix!r} leads out of {root}; use a plain name.")
    stem.parent.mkdir(parents=True, exist_ok=True)
    part = stem.with_name(f"{stem.name}.{os.getpid()}.part")
    try:
        write(inversion, part)
        number = 1
        while True:
            path = stem.with_name(f"{stem.name}_{number:05d}{SUFFIX}")
            try:
                _place(part, path)
                return path
            except FileExistsError:
                number += 1
    finally:
        part.unlink(missing_ok=True)


def _place(part: Path, path: Path) -> None:
    """Give a file its name, FileExistsError if that is taken; a plain rename would write over it."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: take the name first
        path.open("x").close()
        part.replace(path)


def write(inversion: Inversion, path: Path) -> None:
    """Write an inversion into a file, over whatever it holds.

    Raises:
        ValueError: a prompt holds what a file cannot.
    """
    tensors, options = _pack_conditioning("conditioning", inversion.conditioning)
    fields = {
        "sigmas": inversion.sigmas,
        "steps": inversion.steps,
        "offset": inversion.offset,
        "family": inversion.family,
        "prediction": inversion.prediction,
        "conditioning": options,
        "method": inversion.method,
        "null_guidance": inversion.null_guidance,
        "errors": inversion.errors,
    }
    if inversion.null_states is not None:
        held, (fields["null_options"],) = _pack_conditioning("null", [[inversion.null_states, inversion.null_options]])
        tensors |= held
    metadata = {"format": FORMAT, "version": VERSION, "inversion": json.dumps(fields)}
    save_file({"latents": inversion.latents.contiguous(), **tensors}, path, metadata)


def _pack_conditioning(name: str, conditioning: Conditioning) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Tensors by name, and per part of the conditioning its plain options."""
    tensors: dict[str, Tensor] = {}
    options: list[dict[str, Any]] = []
    for i, (states, extra) in enumerate(conditioning):
        tensors[f"{name}.{i}.states"] = _own(states)
        plain: dict[str, Any] = {}
        for key, value in extra.items():
            if isinstance(value, Tensor):
                tensors[f"{name}.{i}.option.{key}"] = _own(value)
            elif value is None or isinstance(value, str | int | float | bool):
                plain[key] = value
            else:
                raise ValueError(
                    f"A prompt of the inversion carries {key!r} ({type(value).__name__}), which a file cannot hold. "
                    "Invert with a prompt that comes directly from CLIP Text Encode."
                )
        options.append(plain)
    return tensors, options


def _own(tensor: Tensor) -> Tensor:
    """A copy that shares its memory with no other, as the file wants it: a null text may be a view of the prompt."""
    return tensor.detach().cpu().contiguous().clone()


def load(name: str) -> Inversion:
    """Load a saved inversion.

    Raises:
        ValueError: no such file, a foreign or broken one, or one of a later version.
    """
    return read(path_of(name), name)


def read(path: Path, name: str) -> Inversion:
    """The inversion in a file, which messages call by a name.

    Raises:
        ValueError: a foreign or broken file, or one of a later version.
    """
    broken = (SafetensorError, OSError, KeyError, TypeError, AttributeError)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _check_format(name, metadata)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except broken as error:
        raise ValueError(f"{name!r} is not a whole inversion file ({error}). Save the inversion again.") from error
    try:
        return _unpack(json.loads(metadata["inversion"]), tensors)
    except (*broken, ValueError) as error:
        raise ValueError(f"{name!r} is not a whole inversion file ({error}). Save the inversion again.") from error


def _check_format(name: str, metadata: dict[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{name!r} is a safetensors file, but not an inversion. Choose one that Save Inversion has written."
        )
    if metadata.get("version") not in READABLE:
        raise ValueError(
            f"{name!r} has version {metadata.get('version')} of the inversion format; this pack reads "
            f"{' and '.join(READABLE)}. "
            "Update the pack."
        )


def _unpack(fields: dict[str, Any], tensors: dict[str, Tensor]) -> Inversion:
    latents = tensors["latents"]
    if latents.ndim != 5 or len(latents) != len(fields["sigmas"]) or not torch.isfinite(latents).all():
        raise TypeError(f"latents of shape {tuple(latents.shape)} for {len(fields['sigmas'])} levels")
    null_states, null_options = tensors.get("null.0.states"), {}
    if null_states is not None:
        if not torch.isfinite(null_states).all():
            raise TypeError("null text that is not finite")
        ((_, null_options),) = _unpack_conditioning("null", [fields["null_options"]], tensors)
    guidance = fields.get("null_guidance")
    return Inversion(
        latents=latents,
        sigmas=tuple(float(s) for s in fields["sigmas"]),
        steps=int(fields["steps"]),
        offset=int(fields["offset"]),
        family=str(fields["family"]),
        prediction=str(fields["prediction"]),
        conditioning=_unpack_conditioning("conditioning", fields["conditioning"], tensors),
        method=str(fields.get("method", "DDIM inversion")),
        null_states=null_states,
        null_options=null_options,
        null_guidance=None if guidance is None else float(guidance),
        errors=tuple(float(e) for e in fields.get("errors", ())),
    )


def _unpack_conditioning(name: str, options: list[dict[str, Any]], tensors: dict[str, Tensor]) -> Conditioning:
    conditioning = []
    for i, plain in enumerate(options):
        prefix = f"{name}.{i}.option."
        extra = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        conditioning.append([tensors[f"{name}.{i}.states"], {**plain, **extra}])
    return conditioning
