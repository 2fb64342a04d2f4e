"""Corrupted and odd inversion files: each is refused with a ValueError that names the field, or loads equal."""

from __future__ import annotations

import json
import random
from typing import Any

import folder_paths
import pytest
import tiny
import torch
from attention_edit.inversion import file_format, store
from attention_edit.inversion.record import Inversion
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

pytestmark = pytest.mark.timeout(120)

STATES, OPTIONS = tiny.prompt(3, "SDXL", batch=1)[0]
NULL = tiny.prompt(4, "SDXL")[0]
LATENTS = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
RECORD = Inversion(
    LATENTS,
    (0.03, 0.5, 2.0),
    3,
    0,
    "SDXL",
    "eps",
    [[STATES, {**OPTIONS, "width": 512, "crop_w": 0}]],
    "null text",
    NULL[0].expand(2, 1, -1, -1).clone(),
    dict(NULL[1]),
    7.5,
    (0.1, 0.2),
)
VERSIONS = ("1", "2", "3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("output")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_paths, "get_output_directory", lambda: str(root))
        (root / "inversions").mkdir()
        yield root / "inversions"


def parts() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    return file_format._pack(RECORD)


def signed(fields: Any, tensors: dict[str, torch.Tensor], version: str = "3", **metadata: str) -> bytes:
    """A file with whatever fields (a text is taken as it is), with the checksum that goes with them."""
    text = fields if isinstance(fields, str) else json.dumps(fields)
    held = {"format": store.FORMAT, "version": version, "inversion": text, **metadata}
    if version == "3":
        held["checksum"] = file_format._checksum(held, tensors)
    return save(tensors, held)


def refused(folder, data: bytes) -> str | None:
    """The text of the refusal; None if the file loaded. Any other exception goes through."""
    path = folder / "odd.safetensors"
    path.write_bytes(data)
    try:
        loaded = store.load(path.name)
    except ValueError as error:
        assert str(error)[:4] in ("Save", "Choo", "Upda", "Look"), error
        return str(error)
    assert (loaded.sigmas, loaded.steps, loaded.family) == (RECORD.sigmas, RECORD.steps, RECORD.family)
    assert torch.equal(loaded.latents, RECORD.latents) and torch.equal(loaded.null_states, RECORD.null_states)
    assert torch.equal(loaded.conditioning[0][0], STATES) and loaded.errors == RECORD.errors
    assert loaded.conditioning[0][1].keys() == RECORD.conditioning[0][1].keys()
    return None


@pytest.mark.parametrize("version", VERSIONS)
def test_the_whole_file_loads(folder, version):
    assert refused(folder, signed(*parts(), version)) is None


@pytest.mark.parametrize("seed", range(120))
def test_flipped_bits(folder, seed):
    rng = random.Random(seed)
    data = bytearray(signed(*parts()))
    end = len(data) if seed % 2 else 8 + int.from_bytes(data[:8], "little")
    for _ in range(rng.choice((1, 1, 1, 5, 50))):
        data[rng.randrange(end)] ^= 1 << rng.randrange(8)
    refused(folder, bytes(data))


@pytest.mark.parametrize("seed", range(30))
def test_cut_shifted_and_filled(folder, seed):
    rng = random.Random(seed)
    data = signed(*parts())
    place, length = rng.randrange(len(data)), rng.randrange(1, 400)
    changed = (
        data[:place],
        data[:place] + data[place + length :],
        data[:place] + rng.randbytes(length) + data[place:],
        data + rng.randbytes(length),
        rng.randbytes(length),
    )[seed % 5]
    assert refused(folder, changed)


def with_fields(**changes: Any) -> dict[str, Any]:
    fields = parts()[0]
    fields.update(changes)
    return {key: value for key, value in fields.items() if value is not ...}


DEEP = "[" * 100_000 + "]" * 100_000
FIELD_CASES = [
    *[("sigmas", v) for v in (3, [], [0.1], ["a", "b", "c"], [0.03, 0.5], [2.0, 0.5, 0.03], [0.5, 0.5, 0.5])],
    *[
        ("sigmas", v)
        for v in ([0.0, 0.5, 2.0], [-1.0, 0.5, 2.0], [0.03, 0.5, 1e9], [0.03, None, 2.0], [0.03, True, 2.0])
    ],
    *[("steps", v) for v in (0, -1, 10**9, 10**400, 3.0, "3", None, True, [3], 4, ...)],
    *[("offset", v) for v in (-1, 2, 1, "0", None, 0.0, False, ...)],
    *[("family", v) for v in ("Flux", "", "sdxl", 1, None, ["SDXL"], ...)],
    *[("prediction", v) for v in ("x0", "", "EPS", None, 1, {}, ...)],
    *[("conditioning", v) for v in (3, [], [3], [{}, {}], {}, None, [None], [{"area": [1, 2, 3, 4]}], ...)],
    *[("conditioning", [{key: 1}]) for key in ("model_conds", "hooks", "control", "strength", "states", "uuid")],
    *[("conditioning", [{key: v}]) for key in ("width", "crop_w") for v in ("512", -1, 1e400, None, 2.5, [1], 1 << 70)],
    ("conditioning", [{"pooled_output": None}]),
    *[("method", v) for v in ("", "m" * 300, 3, None, [])],
    *[("null_guidance", v) for v in ("7.5", -1, 1e6, [7], True)],
    *[("errors", v) for v in (3, None, ["a"], [-1.0], [1e300], [0.1] * 2000, [None])],
    *[("null_options", v) for v in (3, None, [], {"hooks": 1}, {"width": "a"}, ...)],
    ("surprise", 1),
]


@pytest.mark.parametrize("version", ["2", "3"])
@pytest.mark.parametrize(("field", "value"), FIELD_CASES)
def test_fields_that_are_not_of_the_schema(folder, field, value, version):
    """With the right checksum, and without one."""
    told = refused(folder, signed(with_fields(**{field: value}), parts()[1], version))
    assert told is not None and (field in told or (field == "offset" and "offset 1" in told))
    assert len(told) < 1000


RAW = {
    "deep": DEEP,
    "deep field": json.dumps(with_fields()).replace('"errors": [', f'"errors": [{DEEP}, '),
    "infinite": json.dumps(with_fields()).replace("0.03", "1e400"),
    "NaN": json.dumps(with_fields()).replace("0.03", "NaN"),
    "Infinity": json.dumps(with_fields()).replace("7.5", "-Infinity"),
    "digits": json.dumps(with_fields()).replace('"steps": 3', '"steps": ' + "9" * 400),
    "many digits": json.dumps(with_fields()).replace('"steps": 3', '"steps": ' + "9" * 5000),
    "no JSON": "import os",
    "nothing": "",
    "a list": "[]",
    "a number": "3",
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", RAW)
def test_texts_that_are_no_fields(folder, kind, version):
    told = refused(folder, signed(RAW[kind], parts()[1], version))
    assert told is not None and "inversion" in told.split("Its field")[1]


def changed(name: str, change: Any) -> dict[str, torch.Tensor]:
    tensors = parts()[1]
    if change is None:
        del tensors[name]
    else:
        tensors[name] = change(tensors[name]).contiguous()
    return tensors


def at(number: float) -> Any:
    def put(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[7] = number
        return tensor

    return put


TENSOR_CASES = [
    (name, change)
    for name in ("latents", "conditioning.0.states", "conditioning.0.option.pooled_output", "null.0.states")
    for change in (
        None,
        at(float("nan")),
        at(float("inf")),
        at(-1e30),
        lambda t: t.to(torch.float8_e4m3fn),
        lambda t: t.to(torch.int32),
        lambda t: t > 0,
        lambda t: t[None],
        lambda t: t.flatten(),
        lambda t: t[..., :0],
        lambda t: torch.cat([t] * 3, 0),
        lambda t: t.reshape(()) if t.numel() == 1 else t.sum(),
    )
]
TENSOR_CASES += [
    ("latents", lambda t: t.half()),
    ("latents", torch.zeros_like),
    ("latents", lambda t: t[:2]),
    ("latents", lambda t: t[:, :, :3]),
    ("latents", lambda t: t.repeat(1, 1, 4, 1, 1)),
    ("null.0.states", lambda t: t[..., :8]),
    ("null.0.states", lambda t: t.repeat(2, 1, 1, 1)),
]


@pytest.mark.parametrize("version", ["2", "3"])
@pytest.mark.parametrize("number", range(len(TENSOR_CASES)))
def test_tensors_that_are_not_of_the_schema(folder, number, version):
    name, change = TENSOR_CASES[number]
    told = refused(folder, signed(parts()[0], changed(name, change), version))
    assert told is not None and name in told


def test_a_tensor_that_the_format_does_not_have(folder):
    for name in ("conditioning.1.states", "conditioning.0.option.hooks", "weight", "latents.0"):
        told = refused(folder, signed(parts()[0], {**parts()[1], name: torch.zeros(2)}))
        assert told is not None and name in told


@pytest.mark.parametrize("version", ["1", "2", "4", "", "three"])
def test_a_version_without_a_checksum_does_not_have_one(folder, version):
    """A flipped bit makes 2 of 3; the checksum that is there still says that the file was of version 3."""
    told = refused(folder, signed(*parts(), version, checksum="0" * 32))
    assert told is not None and ("checksum" in told or "version" in told)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(field=st.sampled_from(sorted(parts()[0])), value=JSON, version=st.sampled_from(("2", "3")))
def test_any_json_in_any_field(folder, field, value, version):
    """Whatever stands in a field, nothing but a ValueError that names it; or the value is one that may stand there."""
    path = folder / "odd.safetensors"
    path.write_bytes(signed(with_fields(**{field: value}), parts()[1], version))
    try:
        loaded = store.load(path.name)
    except ValueError as error:
        assert field in str(error) or "JSON" in str(error)
    else:
        assert field in ("method", "null_guidance", "null_options", "errors") and isinstance(loaded, Inversion)
