"""Hosts that lack what the newest one has, made of the newest one by taking it away."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import comfy.model_management
import pytest
import torch
from attention_edit.host import older, schemas
from attention_edit.host.schemas import YOUNGER, TolerantIO, is_old
from comfy_api.latest import io
from house import PACK


def lacking(make):
    """A constructor that refuses what hosts of 2025 do not know."""

    def made(*args, **kwargs):
        unknown = set(kwargs) & set(YOUNGER)
        if unknown:
            raise TypeError(f"got an unexpected keyword argument {unknown}")
        return make(*args, **kwargs)

    signature = inspect.signature(make)
    kept = [p for name, p in signature.parameters.items() if name not in YOUNGER]
    made.__signature__ = signature.replace(parameters=kept)
    return made


class OldInput(io.WidgetInput):
    """An input of a host of 2025."""

    def __init__(self, id, default=None, tooltip=None):
        super().__init__(id, default=default, tooltip=tooltip)


@pytest.fixture
def old_io():
    typed = SimpleNamespace(Input=OldInput, Output=io.Int.Output)
    kept = {name: getattr(io, name) for name in ("WidgetInput", "Mask", "NodeOutput", "Custom")}
    return SimpleNamespace(Schema=lacking(io.Schema), Int=typed, **kept)


def test_what_is_unknown_there_is_left_out(old_io):
    assert is_old(old_io)
    tolerant = TolerantIO(old_io)
    made = tolerant.Int.Input("count", default=3, tooltip="How many.", advanced=True)
    assert isinstance(made, OldInput) and (made.id, made.default, made.tooltip) == ("count", 3, "How many.")
    schema = tolerant.Schema(node_id="Some", search_aliases=["other"], inputs=[made])
    assert schema.node_id == "Some" and schema.inputs == [made]
    assert tolerant.Int.Output is io.Int.Output and tolerant.Mask is io.Mask and tolerant.NodeOutput is io.NodeOutput


def test_what_is_misspelt_is_an_error_there_too(old_io):
    tolerant = TolerantIO(old_io)
    with pytest.raises(TypeError, match="advancd"):
        tolerant.Int.Input("count", advancd=True)
    with pytest.raises(TypeError, match="search_alias'"):
        tolerant.Schema(node_id="Some", search_alias=[])


def test_a_host_that_knows_all_keeps_its_own():
    assert is_old(io) == isinstance(schemas.io, TolerantIO)
    assert is_old(io) or schemas.io is io


def test_every_node_takes_its_schema_from_there():
    """Not from the host itself, where an old one would refuse it."""
    files = list((PACK / "nodes").glob("*.py"))
    assert files
    own = [path.name for path in files if "comfy_api.latest import io" in path.read_text("utf-8")]
    assert own == []


def test_the_precision_of_a_model_that_does_not_say_it():
    def old(cast):
        return SimpleNamespace(manual_cast_dtype=cast, get_dtype=lambda: torch.float16)

    assert older.inference_dtype(old(None)) == torch.float16
    assert older.inference_dtype(old(torch.float32)) == torch.float32


def test_a_patcher_that_knows_no_dynamic_loading():
    assert not older.is_dynamic(SimpleNamespace())
    assert older.is_dynamic(SimpleNamespace(is_dynamic=lambda: True))
    assert not older.is_dynamic(SimpleNamespace(is_dynamic=lambda: False))


def test_errors_but_for_lack_of_memory_are_raised_again(monkeypatch):
    lack = comfy.model_management.OOM_EXCEPTION("full")
    for _ in range(2):
        older.raise_non_oom(lack)
        with pytest.raises(KeyError, match="other"):
            older.raise_non_oom(KeyError("other"))
        monkeypatch.delattr(comfy.model_management, "raise_non_oom", raising=False)
