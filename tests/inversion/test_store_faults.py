"""What a disk, a name or another writer does to a file of an inversion is told with what to do about it."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from dataclasses import replace

import folder_paths
import pytest
import tiny
import torch
from attention_edit.inversion import file_format, files, schema, store
from attention_edit.inversion.record import Inversion
from safetensors import SafetensorError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    return tmp_path / "inversions"


def record(kind="SDXL", **options) -> Inversion:
    states, extra = tiny.prompt(3, kind)[0]
    return Inversion(
        torch.randn(3, 1, 4, 8, 8), (0.03, 0.5, 2.0), 3, 0, "SDXL", "eps", [[states, {**extra, **options}]]
    )


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("n" * 245, "Use a shorter name"),
        ("n" * 300, "Use a shorter name"),
        ("n" * 4000, "Use a shorter name"),
        ("a\0b", "Use a plain name"),
        ("", "Give the file a name"),
        (".", "Give the file a name"),
    ],
)
def test_names_that_no_file_can_have(folder, name, cure):
    with pytest.raises(ValueError, match=rf"^{cure}"):
        store.save(record(), name)
    assert not folder.exists() or not list(folder.iterdir())
    with pytest.raises(ValueError, match=rf"^({cure}|Choose another file)"):
        store.load(name)


def test_a_file_where_a_folder_is_wanted(folder):
    folder.write_text("not a folder")
    with pytest.raises(ValueError, match=r"^Rename the file or folder"):
        store.save(record(), "photo")
    assert store.names() == []


def test_a_folder_where_the_file_is_wanted(folder):
    (folder / "photo_00001.safetensors").mkdir(parents=True)
    assert store.save(record(), "photo").name == "photo_00002.safetensors"
    assert store.names() == ["photo_00002.safetensors"]
    with pytest.raises(ValueError, match=r"^Choose another file"):
        store.load("photo_00001.safetensors")


def test_a_link_that_leads_to_itself(folder):
    folder.mkdir()
    (folder / "loop.safetensors").symlink_to("loop.safetensors")
    (folder / "sub").symlink_to("sub")
    for attempt in (lambda: store.load("loop.safetensors"), lambda: store.save(record(), "sub/photo")):
        with pytest.raises(ValueError, match=r"^Remove the link"):
            attempt()
    assert store.names() == []


def test_a_pipe_is_no_file(folder):
    folder.mkdir()
    os.mkfifo(folder / "pipe.safetensors")
    with pytest.raises(ValueError, match=r"^Choose another file"):
        store.load("pipe.safetensors")


@pytest.mark.parametrize(
    ("number", "cure"),
    [(errno.ENOSPC, "Free space"), (errno.EROFS, "Give ComfyUI the right"), (errno.EACCES, "Give ComfyUI the right")],
)
def test_a_full_or_read_only_disk_is_told(folder, monkeypatch, number, cure):
    def full(*_):
        raise SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")

    monkeypatch.setattr(file_format, "save_file", full)
    with pytest.raises(ValueError, match=rf"^{cure}"):
        store.save(record(), "photo")
    assert not list(folder.iterdir())


def test_a_folder_without_the_right_to_write(folder, monkeypatch):
    def refused(*_args, **_options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(store.Path, "mkdir", refused)
    with pytest.raises(ValueError, match=r"^Give ComfyUI the right"):
        store.save(record(), "photo")


def test_files_have_the_permissions_of_new_files(folder):
    folder.mkdir()
    (folder / "plain").touch()
    assert store.save(record(), "photo").stat().st_mode == (folder / "plain").stat().st_mode


def test_threads_save_under_one_prefix(folder):
    inversions = [record() for _ in range(6)]
    paths, failures = [], []

    def work(inversion):
        try:
            for _ in range(5):
                paths.append((store.save(inversion, "photo"), inversion))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(inversion,)) for inversion in inversions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and len({path for path, _ in paths}) == 30
    assert all(torch.equal(store.load(path.name).latents, inversion.latents) for path, inversion in paths)
    assert len(list(folder.iterdir())) == 30


def test_leftovers_of_a_killed_writer_go_when_they_are_old(folder):
    (folder / "sub").mkdir(parents=True)
    left = [folder / "photo.17.part", folder / ".tmpAb12cD", folder / "sub" / f"{'0' * 32}.part"]
    others = [folder / "notes.txt", folder / "download.part", folder / "old.safetensors"]
    for path in left + others:
        path.write_bytes(b"half")
        os.utime(path, (time.time() - 2 * files.STALE,) * 2)
    young = folder / f"{'1' * 32}.part"
    young.write_bytes(b"half")
    store.save(record(), "photo")
    assert not any(path.exists() for path in left)
    assert young.exists() and all(path.exists() for path in others)


def test_a_sparse_file_is_refused_by_its_size(folder):
    folder.mkdir()
    fields = {
        "sigmas": [0.001 * i for i in range(1, 1001)],
        "steps": 1000,
        "offset": 0,
        "family": "SD1.x",
        "prediction": "eps",
        "conditioning": [{}],
    }
    latents, states = 1000 * 16 * 4 * 400 * 400 * 4, 77 * 16 * 4
    header = {
        "__metadata__": {"format": store.FORMAT, "version": "2", "inversion": json.dumps(fields)},
        "latents": {"dtype": "F32", "shape": [1000, 16, 4, 400, 400], "data_offsets": [0, latents]},
        "conditioning.0.states": {"dtype": "F32", "shape": [1, 77, 16], "data_offsets": [latents, latents + states]},
    }
    text = json.dumps(header).encode()
    with (folder / "sparse.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + latents + states)
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"field size is 38.1 GiB; expected is at most 16 GiB"):
        store.load("sparse.safetensors")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"family": "Flux"}, "family"),
        ({"sigmas": (2.0, 0.5, 0.03)}, "sigmas"),
        ({"steps": 10**9}, "steps"),
        ({"latents": torch.zeros(3, 1, 4, 8, 8)}, "latents"),
        ({"latents": torch.ones(3, 1, 16, 8, 8)}, "latents"),
        ({"latents": torch.full((3, 1, 4, 8, 8), 1e30)}, "latents"),
        ({"null_guidance": float("inf")}, "null_guidance"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(folder, change, told):
    with pytest.raises(ValueError, match=rf"^Invert the image again.*{told}"):
        store.save(replace(record(), **change), "photo")
    assert not list(folder.iterdir())


def test_texts_per_step_are_one_table(folder):
    """A further one is an entry in STEP_TEXTS and a field of the record."""
    assert set(file_format._TEXTS) == set(schema.STEP_TEXTS) & set(Inversion.__dataclass_fields__)
    assert "null_states" in file_format._TEXTS
