"""What an inversion file may hold: one table of fields and one of tensors, with types, ranges and shapes.

Everything is judged from the file's header, before a number is read; the numbers are looked at once afterwards. A file
without a checksum (versions 1 and 2) is held to the same tables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..host.families import FAMILIES, JOINT_FAMILIES, LATENT_CHANNELS, SDXL
from ..host.marks import STATES
from ..host.transformers import QWEN
from .learned import LEARNED, LEARNED_PLACES, LEARNED_VECTORS, TOKEN_KEYS
from .rules import Many, Maybe, Number, OneOf, SchemaError, Table, Text, known, refuse, shown
from .schedule import MAX_STEPS, timesteps

__all__ = ["SchemaError", "known", "refuse", "shown"]

LARGEST_SIGMA = 4519.0
"""The noisiest level of any table of the families: 14.6 as trained, 4518.8 rescaled to a zero terminal SNR."""
LEAST_SIGMA = 1e-6
"""The cleanest level that a DDPM schedule may begin with; a rectified flow's is 0."""
LARGEST_VALUE = 65504.0
"""The largest number that half precision holds, in which the model will read the tensors."""
LARGEST_SIDE = 2048
"""Cells of a latent's side: the host's largest picture has 16384 pixels."""
LARGEST_BATCH = 4096
LARGEST_CHANNELS = 256
LARGEST_FILE = 16 << 30
"""Bytes of all tensors together; 1000 levels of a 4096 x 4096 picture take 4 GiB."""

STEP_TEXTS = {"null_states": "null.0.states", "text_states": "text.0.states"}
"""Fields of an Inversion that hold text states per step, (1 or S - 1, 1 or B, L, C), and their tensors in a file."""

FLOATS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
"""Number types of text states, with safetensors' names; latents and texts per step are float32."""
WHOLE = {torch.int64: "I64"}

_PIXELS = Number(0, 16384, whole=True)
TENSOR_OPTIONS = ("pooled_output", *LEARNED)
OPTIONS = Table(
    {
        **dict.fromkeys(("width", "height", "crop_w", "crop_h", "target_width", "target_height"), _PIXELS),
        "aesthetic_score": Number(0, 1000),
        "guidance": Number(0, 1000),
        "pooled_output": OneOf((None,)),
    }
)
"""Options of a prompt that CLIP Text Encode, CLIP Text Encode SDXL and FluxGuidance make; `TENSOR_OPTIONS` are tensors,
most of them what Dynamic Prompt Learning puts on a source prompt."""
_FLOWS = tuple(family.name for family in JOINT_FAMILIES)
_SOURCE = "conditioning.0.option."
_PLACES = f"{_SOURCE}{LEARNED_PLACES}"
_WHOLE = (_PLACES, f"{_SOURCE}{TOKEN_KEYS}")
_EXACT = ("latents", *STEP_TEXTS.values(), *(f"{_SOURCE}{key}" for key in LEARNED))

FIELDS = Table(
    {
        "sigmas": Many(Number(0, LARGEST_SIGMA), 2, MAX_STEPS + 1),
        "steps": Number(1, MAX_STEPS, whole=True),
        "offset": Number(0, 1, whole=True),
        "family": OneOf(tuple(family.name for family in (*FAMILIES, *JOINT_FAMILIES))),
        "prediction": OneOf(("eps", "v", "flow")),
        "conditioning": Many(OPTIONS, 1, 1),
        "method": Text(200),
        "null_options": OPTIONS,
        "null_guidance": Maybe(Number(0, 1000)),
        "errors": Many(Number(0, 1e30), 0, MAX_STEPS),
        "weights": Text(64),
        "connected": Many(Number(0, LARGEST_SIGMA), 2, 2),
    },
    needed=("sigmas", "steps", "offset", "family", "prediction", "conditioning"),
)


def check_fields(fields: Any) -> None:
    """Raise SchemaError unless the plain fields are of the table, and go with one another."""
    FIELDS("inversion", fields)
    sigmas = fields["sigmas"]
    for i in range(1, len(sigmas)):
        if sigmas[i] <= sigmas[i - 1]:
            refuse(f"inversion.sigmas[{i}]", shown(sigmas[i]), f"more than the level before it, {sigmas[i - 1]:g}")
    flow = fields["prediction"] == "flow"
    if flow != (fields["family"] in _FLOWS):
        refuse("inversion.prediction", shown(fields["prediction"]), f"what {fields['family']} predicts")
    connected = "connected" in fields
    if connected and sigmas[0] != 0:
        refuse("inversion.sigmas[0]", shown(sigmas[0]), "0, where a connected schedule ends")
    if not (flow or connected) and sigmas[0] < LEAST_SIGMA:
        refuse("inversion.sigmas[0]", shown(sigmas[0]), f"at least {LEAST_SIGMA:g}")
    levels = fields["steps"] + 1 if flow or connected else len({0, *timesteps(fields["steps"], fields["offset"])})
    if len(sigmas) != levels:
        told = f"{levels} levels, as {fields['steps']} steps with offset {fields['offset']} have"
        refuse("inversion.sigmas", f"a list of {len(sigmas)}", told)


def check_shapes(fields: dict[str, Any], held: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Raise SchemaError unless the tensors' types and shapes go with the (checked) fields and with one another.

    Args:
        held: by tensor's name, safetensors' name of the number type, and the shape.
    """
    bounds = _bounds(fields, held)
    known("", held, bounds)
    for name, (kind, shape) in held.items():
        kinds = ("I64",) if name in _WHOLE else ("F32",) if name in _EXACT else tuple(FLOATS.values())
        if kind not in kinds:
            refuse(name, f"of type {kind}", "of type " + " or ".join(kinds))
        if len(shape) != len(bounds[name]) or not all(n in ok for n, ok in zip(shape, bounds[name], strict=True)):
            refuse(name, f"of shape {shape}", "of shape (" + ", ".join(map(_span, bounds[name])) + ")")
    for text, options in (("conditioning", fields["conditioning"][0]), ("null", fields.get("null_options"))):
        _check_pooled(text, options, fields["family"], held)


def _bounds(
    fields: dict[str, Any], held: Mapping[str, tuple[str, tuple[int, ...]]]
) -> dict[str, tuple[range | tuple[int, ...], ...]]:
    """Per tensor of the format and dimension, the sizes that it may have."""
    shapes = {name: shape for name, (_, shape) in held.items()}
    for name in ("latents", "conditioning.0.states"):
        if name not in shapes:
            refuse(name, "missing", "a tensor")
    if ("null_options" in fields) != (STEP_TEXTS["null_states"] in shapes):
        refuse("inversion.null_options", "without its partner", "together with null.0.states")
    levels, side = len(fields["sigmas"]), range(1, LARGEST_SIDE + 1)
    batch = (1, shapes["latents"][1]) if len(shapes["latents"]) > 1 else (1,)
    # A transformer's latents are of its own autoencoder: 4 (the demo's), 16 or 128 channels.
    channels = range(1, LARGEST_CHANNELS + 1) if fields["family"] in _FLOWS else (LATENT_CHANNELS,)
    frames = ((1,),) if fields["family"] == QWEN.name else ()
    tokens, width = range(1, 1 << 16), range(1, 1 << 14)
    own = shapes["conditioning.0.states"][-1:] or (0,)
    found: dict[str, tuple[range | tuple[int, ...], ...]] = {
        "latents": ((levels,), range(1, LARGEST_BATCH + 1), channels, *frames, side, side),
        "conditioning.0.states": (batch, tokens, width),
    }
    found |= {name: ((1, levels - 1), batch, tokens, own) for name in STEP_TEXTS.values()}
    texts = ("conditioning", "null") if "null_options" in fields else ("conditioning",)
    found |= {f"{text}.0.option.pooled_output": (batch, width) for text in texts}
    return found | _learned_bounds(shapes, levels - 1, batch)


def _learned_bounds(
    shapes: Mapping[str, tuple[int, ...]], steps: int, batch: tuple[int, ...]
) -> dict[str, tuple[range | tuple[int, ...], ...]]:
    """The same of what was learned of a source prompt's words: all of it is there, or nothing."""
    there = [key for key in LEARNED if f"{_SOURCE}{key}" in shapes]
    if not there:
        return {}
    encoders = [key for key in LEARNED_VECTORS if key in there] or LEARNED_VECTORS[:1]
    for key in (STATES, TOKEN_KEYS, LEARNED_PLACES, *encoders):
        if key not in there:
            refuse(f"{_SOURCE}{key}", "missing", f"a tensor beside {there[0]}")
    text, places = shapes["conditioning.0.states"], shapes[_PLACES]
    length, width = (text[-2:-1] or (0,)), (text[-1:] or (0,))
    found = {key: ((steps,), batch, places[:1] or (0,), range(1, 1 << 14)) for key in LEARNED_VECTORS}
    found |= {STATES: ((steps,), batch, length, width), TOKEN_KEYS: (length,), LEARNED_PLACES: (range(1, 1 << 16),)}
    return {f"{_SOURCE}{key}": sizes for key, sizes in found.items()}


def _span(sizes: range | tuple[int, ...]) -> str:
    return f"{sizes[0]} to {sizes[-1]}" if isinstance(sizes, range) else " or ".join(map(str, dict.fromkeys(sizes)))


def _check_pooled(
    text: str, options: dict[str, Any] | None, family: str, held: Mapping[str, tuple[str, tuple[int, ...]]]
) -> None:
    """SDXL reads a pooled text beside the states; a text must not have it twice."""
    name = f"{text}.0.option.pooled_output"
    if options is None:
        return
    if name in held and "pooled_output" in options:
        refuse(name, "there as a tensor and as a field", "only one of them")
    if family == SDXL.name and name not in held:
        refuse(name, "missing", f"a tensor, which {family} needs with each text")


def check_values(tensors: Mapping[str, Tensor]) -> None:
    """Raise SchemaError unless the numbers are finite and of a size that half precision holds.

    The noisiest latent is never all zero: there is nothing in it that an edit could start from. Learned words stand at
    places of the prompt, each once.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in WHOLE:
            _check_numbers(name, tensor)
    if _PLACES in tensors:
        length, found = tensors["conditioning.0.states"].shape[1], tensors[_PLACES].tolist()
        if len(set(found)) < len(found) or not all(0 <= place < length for place in found):
            refuse(_PLACES, shown(found), f"places from 0 to {length - 1}, each once")


def _check_numbers(name: str, tensor: Tensor) -> None:
    largest = max(-float(tensor.min()), float(tensor.max()))  # NaN goes through both
    if not math.isfinite(largest) or largest > LARGEST_VALUE:
        refuse(name, f"a tensor that holds {largest:g}", f"finite numbers of at most {LARGEST_VALUE:g}")
    if name == "latents" and not tensor[-1].any():
        refuse("latents[-1]", "zero everywhere", "the inverted noise")
