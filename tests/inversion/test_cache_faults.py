"""What only saves work never costs work: every fault of the cache folder, its files and its names."""

from __future__ import annotations

import random
from dataclasses import replace

import folder_paths
import pytest
import tiny
import torch
from attention_edit.inversion import cache, file_format, store
from attention_edit.inversion.fingerprint import fingerprint
from attention_edit.inversion.record import Inversion
from safetensors import SafetensorError

RECORD = Inversion(torch.ones(3, 1, 4, 8, 8), (0.03, 0.5, 2.0), 3, 0, "SD1.x", "eps", tiny.prompt(3))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    return cache.entries_folder()


def made(value=1.0):
    return replace(RECORD, latents=RECORD.latents * value)


def never():
    raise AssertionError("made again")


def entries(folder):
    return sorted(folder.glob(f"*{store.SUFFIX}"))


def test_leftovers_count_towards_the_limit(folder, model, monkeypatch):
    for number in range(3):
        cache.cached(made, model, number)
    size = entries(folder)[0].stat().st_size
    (folder / ".tmpAb12cD").write_bytes(bytes(size))
    monkeypatch.setattr(cache, "LIMIT", 3 * size + size // 2)
    cache.cached(made, model, 3)
    assert len(entries(folder)) == 2
    assert sum(path.stat().st_size for path in folder.iterdir()) <= cache.LIMIT


def test_what_is_larger_than_the_cache_drives_nothing_out(folder, model, monkeypatch, caplog):
    cache.cached(made, model, 1)
    monkeypatch.setattr(cache, "LIMIT", entries(folder)[0].stat().st_size + 100)
    large = replace(RECORD, latents=torch.ones(3, 1, 4, 64, 64))
    assert cache.cached(lambda: large, model, 2) == (large, False)
    assert "not kept on disk" in caplog.text and cache.cached(never, model, 1)[1]


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("I/O error: No space left on device (os error 28)"),
        OSError(28, "No space left on device"),
        RecursionError("too deep"),
        MemoryError(),
        RuntimeError("torch"),
    ],
)
@pytest.mark.parametrize("place", ["save_file", "safe_open"])
def test_no_failure_of_the_cache_costs_the_inversion(folder, model, monkeypatch, caplog, error, place):
    cache.cached(made, model, 1)

    def fails(*_args, **_options):
        raise error

    monkeypatch.setattr(file_format, place, fails)
    key = 2 if place == "save_file" else 1
    found, was_read = cache.cached(lambda: made(2.0), model, key)
    assert float(found.latents.mean()) == 2 and not was_read and "Attention Edit" in caplog.text
    assert not [path for path in folder.iterdir() if path.suffix != store.SUFFIX]


def test_a_name_that_cannot_be_told_costs_nothing(folder, model, caplog):
    endless = []
    endless.append(endless)
    assert cache.cached(made, model, endless)[1] is False
    assert "RecursionError" in caplog.text


def test_what_making_raises_goes_through(folder, model):
    def fails():
        raise ValueError("by the method")

    with pytest.raises(ValueError, match="by the method"):
        cache.cached(fails, model, 1)


def test_a_flipped_bit_is_no_hit(folder, model):
    cache.cached(made, model, 1)
    (entry,) = entries(folder)
    whole, rng = entry.read_bytes(), random.Random(0)
    for _ in range(40):
        data, place = bytearray(whole), rng.randrange(len(whole))
        data[place] ^= 1 << rng.randrange(8)
        entry.write_bytes(data)
        found, was_read = cache.cached(lambda: made(2.0), model, 1)
        assert not was_read and float(found.latents.mean()) == 2.0


def test_an_entry_of_another_name_or_version_is_made_anew(folder, model):
    cache.cached(made, model, 1)
    (entry,) = entries(folder)
    foreign = folder / f"{fingerprint(model, 2)}{store.SUFFIX}"
    entry.replace(foreign)
    assert cache.cached(lambda: made(2.0), model, 2)[1] is False
    store.write(made(), foreign)  # as Save Inversion does: of no cache
    assert cache.cached(lambda: made(2.0), model, 2)[1] is False
    assert float(cache.cached(never, model, 2)[0].latents.mean()) == 2


def test_a_folder_in_an_entrys_place_costs_nothing(folder, model, caplog):
    (folder / f"{fingerprint(model, 1)}{store.SUFFIX}").mkdir(parents=True)
    assert cache.cached(made, model, 1)[1] is False
    assert "not kept on disk" in caplog.text and len(list(folder.iterdir())) == 1
