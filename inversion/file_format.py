"""The file format of inversions: one safetensors file, whose metadata holds the plain fields and a checksum.

`schema` says what a file may hold. Version 3 has a checksum of all tensors and metadata; 1 had no null text and no
method.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from . import schema
from .files import cure
from .fingerprint import Digest
from .record import Inversion
from .schema import STEP_TEXTS, SchemaError

FORMAT = "attention-edit inversion"
VERSION = "3"
READABLE = ("1", "2", VERSION)
UNSUMMED = ("1", "2")
"""Versions that have no checksum."""
_TEXTS = {field: name for field, name in STEP_TEXTS.items() if field in {f.name for f in fields_of(Inversion)}}
_BROKEN = (SafetensorError, RuntimeError, ValueError, TypeError, KeyError, OverflowError)
"""What safetensors, json and torch raise at a file that is none: RuntimeError holds RecursionError (deep JSON) and
NotImplementedError (a number type without the operation)."""


def write(inversion: Inversion, path: Path, entry: str = "") -> None:
    """Write an inversion into a file, over whatever it holds, with the permissions that its folder's files have.

    Args:
        entry: name under which a cache keeps it.

    Raises:
        ValueError: the inversion holds what a file cannot, or the file cannot be written.
    """
    fields, tensors = _pack(inversion)
    try:
        _check(fields, tensors)
    except SchemaError as error:
        raise ValueError(f"Invert the image again: this inversion is not one that can be kept. {error}") from error
    metadata = {"format": FORMAT, "version": VERSION, "inversion": json.dumps(fields)}
    metadata |= {"entry": entry} if entry else {}
    metadata["checksum"] = _checksum(metadata, tensors)
    try:
        path.touch()
        mode = stat.S_IMODE(path.stat().st_mode)
        save_file(tensors, path, metadata)
        path.chmod(mode)  # safetensors puts a temporary file in its place, which only the owner may read
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{cure(error)}: an inversion could not be written into {path.parent} ({error}).") from error


def _checksum(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Hash of all metadata but the checksum itself, and of the tensors' names, types, shapes and bytes."""
    return Digest().add([{k: v for k, v in metadata.items() if k != "checksum"}, dict(tensors)]).name()


def _pack(inversion: Inversion) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The plain fields and the tensors of a file."""
    fields: dict[str, Any] = {
        "sigmas": list(inversion.sigmas),
        "steps": inversion.steps,
        "offset": inversion.offset,
        "family": inversion.family,
        "prediction": inversion.prediction,
        "conditioning": [],
        "method": inversion.method,
        "null_guidance": inversion.null_guidance,
        "errors": list(inversion.errors),
    }
    fields |= {"weights": inversion.weights} if inversion.weights else {}
    fields |= {"connected": list(inversion.connected)} if inversion.connected else {}
    tensors = {"latents": inversion.latents.detach().cpu().contiguous()}
    for i, (states, options) in enumerate(inversion.conditioning):
        tensors[f"conditioning.{i}.states"] = _own(states)
        fields["conditioning"].append(_pack_options(f"conditioning.{i}", options, tensors))
    for field, name in _TEXTS.items():
        states = getattr(inversion, field)
        if states is not None:
            tensors[name] = _own(states)
    if inversion.null_states is not None:
        fields["null_options"] = _pack_options("null.0", inversion.null_options, tensors)
    return fields, tensors


def _pack_options(text: str, options: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The plain options of a text; those that are tensors are put beside the others of the file."""
    plain: dict[str, Any] = {}
    for key, value in options.items():
        if key in schema.TENSOR_OPTIONS and isinstance(value, Tensor):
            tensors[f"{text}.option.{key}"] = _own(value)
        elif key in schema.OPTIONS.rules:
            plain[key] = value
        else:
            raise ValueError(
                "Invert with a prompt that comes directly from CLIP Text Encode: a prompt of this inversion carries "
                f"{key!r} ({type(value).__name__}), which a file cannot hold."
            )
    return plain


def _own(tensor: Tensor) -> Tensor:
    """A copy that shares its memory with no other, as the file wants it: a null text may be a view of the prompt."""
    return tensor.detach().cpu().contiguous().clone()


def _check(fields: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raise SchemaError unless an inversion is of the schema, with tensors at hand."""
    schema.check_fields(fields)
    kinds = {name: (schema.FLOATS | schema.WHOLE).get(t.dtype, str(t.dtype)) for name, t in tensors.items()}
    schema.check_shapes(fields, {name: (kinds[name], tuple(t.shape)) for name, t in tensors.items()})
    schema.check_values(tensors)


class ForeignError(ValueError):
    """A file of another kind or version."""


def read(path: Path, name: str, entry: str | None = None) -> Inversion:
    """The inversion in a file, which messages call by a name.

    Args:
        entry: what the file must be kept under by a cache; such a file has a checksum. None takes any file.

    Raises:
        ValueError: a foreign or broken file, or one of a later version.
    """
    try:
        _check_room(path)  # before safetensors maps it into memory
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _check_format(name, metadata)
            fields = _parse(metadata, entry)
            names = list(file.keys())
            held = {key: (part.get_dtype(), tuple(part.get_shape())) for key in names for part in [file.get_slice(key)]}
            schema.check_shapes(fields, held)
            # A copy of our own: what safetensors gives lies in the file, which may vanish under it.
            tensors = {key: file.get_tensor(key).clone() for key in names}
        if metadata["version"] not in UNSUMMED and metadata["checksum"] != _checksum(metadata, tensors):
            schema.refuse("checksum", "another than that of the data", "the same; the file was changed or damaged")
        schema.check_values(tensors)
        return _unpack(fields, tensors)
    except ForeignError:
        raise
    except OSError as error:
        raise ValueError(f"{cure(error)}: {name!r} cannot be read ({error}).") from error
    except MemoryError as error:
        raise ValueError(f"Free memory: {name!r} needs {path.stat().st_size / 2**30:.1f} GiB.") from error
    except _BROKEN as error:
        told = str(error) if isinstance(error, SchemaError) else f"Its field header or data: {error}."
        raise ValueError(
            f"Save this inversion again, or invert its image anew: {name!r} is not a whole inversion file. {told}"
        ) from error


def _check_format(name: str, metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise ForeignError(
            f"Choose a file that Save Inversion has written: {name!r} is a safetensors file, but not an inversion "
            f"(its metadata field format is {schema.shown(metadata.get('format'))}; expected is {FORMAT!r})."
        )
    if metadata.get("version") not in READABLE:
        raise ForeignError(
            f"Update the pack: {name!r} has version {schema.shown(metadata.get('version'))} of the inversion format; "
            f"this pack reads {', '.join(READABLE)}."
        )


def _parse(metadata: Mapping[str, str], entry: str | None) -> dict[str, Any]:
    """The plain fields of a file, checked."""
    summed = metadata["version"] not in UNSUMMED
    needed = ("format", "version", "inversion", *(("checksum",) if summed else ()))
    for key in needed:
        if key not in metadata:
            schema.refuse(key, "missing", "in the metadata")
    schema.known("", metadata, (*needed, "entry") if summed else needed)
    if entry is not None and metadata.get("entry") != entry:
        schema.refuse("entry", schema.shown(metadata.get("entry")), f"{entry}, as the file is named")

    try:
        fields = json.loads(metadata["inversion"])
    except (ValueError, RecursionError) as error:
        schema.refuse("inversion", f"a text that cannot be read ({error})", "the JSON that Save Inversion writes")
    schema.check_fields(fields)
    return fields


def _check_room(path: Path) -> None:
    """Raise SchemaError if a file's numbers are more than an inversion has, or than memory holds."""
    size = path.stat().st_size
    free: Any = comfy.model_management.get_free_memory(torch.device("cpu"))
    if size > min(schema.LARGEST_FILE, free):
        most = f"{schema.LARGEST_FILE / 2**30:.0f} GiB"
        told = f"at most {most}, and no more than the {free / 2**30:.1f} GiB of memory that are free"
        schema.refuse("size", f"{size / 2**30:.1f} GiB", told)


def _unpack(fields: dict[str, Any], tensors: dict[str, Tensor]) -> Inversion:
    """The record of checked fields and tensors."""
    guidance = fields.get("null_guidance")
    return Inversion(
        latents=tensors["latents"],
        sigmas=tuple(float(s) for s in fields["sigmas"]),
        steps=fields["steps"],
        offset=fields["offset"],
        family=fields["family"],
        prediction=fields["prediction"],
        conditioning=[
            [tensors[f"conditioning.{i}.states"], _unpack_options(f"conditioning.{i}", options, tensors)]
            for i, options in enumerate(fields["conditioning"])
        ],
        method=fields.get("method", "DDIM inversion"),
        null_options=_unpack_options("null.0", fields.get("null_options", {}), tensors),
        null_guidance=None if guidance is None else float(guidance),
        errors=tuple(float(e) for e in fields.get("errors", ())),
        weights=fields.get("weights", ""),
        connected=tuple(fields.get("connected", ())),
        **{field: tensors.get(name) for field, name in _TEXTS.items()},
    )


def _unpack_options(text: str, plain: dict[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    prefix = f"{text}.option."
    return {**plain, **{key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}}
