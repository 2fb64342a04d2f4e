"""Inversions on disk."""

from __future__ import annotations

import json
from dataclasses import replace

import folder_paths
import pytest
import tiny
import torch
from attention_edit.inversion import store
from attention_edit.inversion.record import Inversion
from safetensors.torch import save_file


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    return tmp_path / "inversions"


def record(kind="SDXL", **options) -> Inversion:
    states, extra = tiny.prompt(3, kind)[0]
    return Inversion(
        torch.randn(3, 1, 4, 8, 8), (0.03, 0.5, 2.0), 3, 0, "SDXL", "eps", [[states, {**extra, **options}]]
    )


def test_round_trip(folder):
    saved = record(width=512, crop_w=0)
    loaded = store.load(store.save(saved, "sub/photo").relative_to(folder).as_posix())
    assert torch.equal(loaded.latents, saved.latents)
    assert (loaded.sigmas, loaded.steps, loaded.offset) == (saved.sigmas, 3, 0)
    assert (loaded.family, loaded.prediction) == ("SDXL", "eps")
    states, options = loaded.conditioning[0]
    assert torch.equal(states, saved.conditioning[0][0])
    assert torch.equal(options["pooled_output"], saved.conditioning[0][1]["pooled_output"])
    assert options["width"] == 512 and options["crop_w"] == 0


@pytest.mark.parametrize("levels", [1, 2])
def test_null_text_round_trip(folder, levels):
    options = {"pooled_output": torch.randn(1, 1280), "width": 1024}
    text = torch.randn(levels, 1, 77, tiny.CONTEXT)
    made = {"method": "null-text inversion", "null_states": text, "null_options": options, "null_guidance": 7.5}
    loaded = store.load(store.save(replace(record(), **made), "photo").name)
    assert torch.equal(loaded.null_states, text) and loaded.null_options["width"] == 1024
    assert torch.equal(loaded.null_options["pooled_output"], options["pooled_output"])
    assert (loaded.method, loaded.null_guidance) == ("null-text inversion", 7.5)


def test_a_null_text_that_is_the_prompt_itself(folder):
    """As Negative-Prompt Inversion makes it: a view of the source's states, of which a file holds a copy."""
    plain = record()
    states, options = plain.conditioning[0]
    saved = replace(plain, method="negative prompt", null_states=states[None], null_options=options)
    loaded = store.load(store.save(saved, "photo").name)
    assert torch.equal(loaded.null_states[0], loaded.conditioning[0][0])


def first_version(fields: dict, folder, name="old.safetensors", **tensors) -> str:
    """A file as version 1 had it, byte for byte in its layout."""
    folder.mkdir(exist_ok=True)
    states = tiny.prompt(3, "SDXL")[0]
    held = {
        "latents": torch.ones(3, 1, 4, 8, 8),
        "conditioning.0.states": states[0],
        "conditioning.0.option.pooled_output": states[1]["pooled_output"],
    }
    known = {"sigmas": [0.03, 0.5, 2.0], "steps": 3, "offset": 0, "family": "SDXL", "prediction": "eps"}
    metadata = {"format": store.FORMAT, "version": "1"}
    metadata["inversion"] = json.dumps({**known, "conditioning": [{"width": 512}], **fields})
    save_file({**held, **tensors}, folder / name, metadata)
    return name


def test_the_first_version_is_read(folder):
    loaded = store.load(first_version({}, folder))
    assert loaded.null_states is None and loaded.null_guidance is None and loaded.method == "DDIM inversion"
    assert loaded.sigmas == (0.03, 0.5, 2.0) and loaded.conditioning[0][1]["width"] == 512
    assert loaded.conditioning[0][1]["pooled_output"].shape == (1, 1280)


@pytest.mark.parametrize(
    "text",
    [torch.zeros(5, 1, 77, 16), torch.zeros(2, 3, 77, 16), torch.zeros(77, 16), torch.full((1, 1, 7, 16), torch.nan)],
)
def test_a_null_text_that_does_not_fit_is_refused(folder, text):
    name = first_version(
        {"null_options": {}}, folder, **{"null.0.states": text, "null.0.option.pooled_output": torch.zeros(1, 1280)}
    )
    with pytest.raises(ValueError, match=r"not a whole inversion.*null\.0\.states"):
        store.load(name)


@pytest.mark.parametrize(
    "fields", [{"sigmas": 3}, {"sigmas": ["a", "b", "c"]}, {"steps": None}, {"conditioning": [3]}, {"conditioning": 3}]
)
def test_fields_of_another_kind_are_refused(folder, fields):
    with pytest.raises(ValueError, match="not a whole inversion"):
        store.load(first_version(fields, folder))


def test_nothing_is_written_over_and_nothing_is_left(folder):
    first, second = store.save(record(), "photo"), store.save(record(), "photo")
    assert first != second and first.is_file() and second.is_file()
    assert {p.suffix for p in folder.iterdir()} == {".safetensors"}
    assert store.names() == ["photo_00001.safetensors", "photo_00002.safetensors"]


@pytest.mark.parametrize("prefix", ["../photo", "/photo", "a/../../photo"])
def test_saving_stays_in_the_folder(folder, prefix):
    with pytest.raises(ValueError, match="leads out"):
        store.save(record(), prefix)
    assert not (folder.parent / "photo_00001.safetensors").exists()


@pytest.mark.parametrize("name", ["../secret.safetensors", "/secret.safetensors"])
def test_loading_stays_in_the_folder(folder, name):
    folder.mkdir()
    (folder.parent / "secret.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="leads out"):
        store.load(name)


def test_a_missing_file_is_named_with_what_there_is(folder):
    store.save(record(), "photo")
    with pytest.raises(ValueError, match=r"other.*photo_00001"):
        store.load("other.safetensors")


def test_a_broken_file_is_refused(folder):
    path = store.save(record(), "photo")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a whole inversion"):
        store.load(path.name)


def test_a_foreign_file_is_refused(folder):
    folder.mkdir()
    save_file({"weight": torch.zeros(2)}, folder / "lora.safetensors")
    with pytest.raises(ValueError, match="not an inversion"):
        store.load("lora.safetensors")


def test_a_later_version_is_refused(folder):
    folder.mkdir()
    save_file({"latents": torch.zeros(1)}, folder / "new.safetensors", {"format": store.FORMAT, "version": "4"})
    with pytest.raises(ValueError, match="Update the pack"):
        store.load("new.safetensors")


def test_a_file_that_contradicts_itself_is_refused(folder):
    name = first_version({}, folder, latents=torch.ones(4, 1, 4, 8, 8))
    with pytest.raises(ValueError, match=r"latents is of shape \(4, 1, 4, 8, 8\); expected is of shape \(3, "):
        store.load(name)


def test_what_a_file_cannot_hold_is_refused(folder):
    with pytest.raises(ValueError, match="control"):
        store.save(record(control=object()), "photo")
    assert not list(folder.glob("*")) if folder.exists() else True


def test_a_file_system_without_hard_links(folder, monkeypatch):
    """exFAT and some network folders: the name is taken first, so that nothing is written over."""

    def refused(*_):
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(store.os, "link", refused)
    first, second = (store.save(record(), "photo") for _ in range(2))
    assert first != second
    for path in (first, second):
        assert store.load(path.relative_to(folder).as_posix()).family == "SDXL"
    assert not list(folder.glob("*.part"))
