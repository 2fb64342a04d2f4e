"""The cache of inversions on disk: found again by content, bounded, and safe with several processes."""

from __future__ import annotations

import multiprocessing
import os
import time
from dataclasses import replace

import comfy.lora
import comfy.sd
import folder_paths
import pytest
import tiny
import torch
from attention_edit.inversion import cache, report, store
from attention_edit.inversion.ddim_inversion import DDIMInversion
from attention_edit.inversion.fingerprint import Digest, UnknownError, fingerprint
from attention_edit.inversion.record import Inversion

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


def test_the_second_time_it_is_read(folder, model):
    first, was_read = cache.cached(made, model, "a", 1)
    second, now_read = cache.cached(never, model, "a", 1)
    assert (was_read, now_read) == (False, True)
    assert torch.equal(first.latents, second.latents) and second.method == first.method
    assert not list(folder.glob("*.part"))


def test_inverting_twice_evaluates_once(folder, model):
    def run(seed, on_disk=True):
        with torch.inference_mode():
            return report.begun(DDIMInversion(3), model, {"samples": tiny.latent(seed)}, tiny.prompt(5), on_disk)

    first = run(1)
    calls = []
    unet = model.model.diffusion_model
    unet.register_forward_pre_hook(lambda *_: calls.append(1))
    assert torch.equal(run(1).latents, first.latents) and not calls
    assert torch.equal(run(1, on_disk=False).latents, first.latents) and len(calls) == 2
    assert not torch.equal(run(2).latents, first.latents)
    unet._forward_pre_hooks.clear()
    assert len(entries(folder)) == 2


def with_lora(model, strength):
    """The model with a LoRA on one layer, as Load LoRA puts it there."""
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    rng = torch.Generator().manual_seed(0)
    lora = {
        "a.lora_up.weight": torch.randn(128, 4, generator=rng),
        "a.lora_down.weight": torch.randn(4, 128, generator=rng),
    }
    patched = model.clone()
    assert patched.add_patches(comfy.lora.load_lora(lora, {"a": key}), strength)
    return patched


def test_names_tell_models_and_inputs_apart(model):
    names = [
        fingerprint(model, 1),
        fingerprint(model, 2),
        fingerprint(model, torch.zeros(2)),
        fingerprint(model, torch.zeros(2, dtype=torch.float16)),
        fingerprint(model, torch.zeros(2, 1)),
        fingerprint(model, tiny.prompt(1)),
        fingerprint(model, tiny.prompt(2)),
        fingerprint(tiny.tiny_model(seed=1), 1),
        fingerprint(with_lora(model, 1.0), 1),
        fingerprint(with_lora(model, 0.5), 1),
    ]
    assert len(set(names)) == len(names)
    assert fingerprint(tiny.tiny_model(), tiny.prompt(1)) == fingerprint(model, tiny.prompt(1))


def test_a_loaded_lora_has_the_name_of_an_unloaded_one(model):
    """Loading writes the LoRA into the weights; the name must not depend on it."""
    patched = with_lora(model, 1.0)
    before = fingerprint(patched, 1)
    tiny.sample(patched, tiny.prompt(1), tiny.prompt(2), tiny.latent(0), torch.tensor([1.0, 0.5]))
    assert fingerprint(patched, 1) == before
    tiny.sample(model, tiny.prompt(1), tiny.prompt(2), tiny.latent(0), torch.tensor([1.0, 0.5]))
    assert fingerprint(patched, 1) == before


def test_what_cannot_be_told_is_made_each_time(folder, model, caplog):
    patched = model.clone()
    patched.set_model_attn1_patch(lambda n, context, value, eo: (n, context, value))
    for _ in range(2):
        assert cache.cached(made, patched, 1)[1] is False
    assert "patches of other nodes" in caplog.text
    with pytest.raises(UnknownError, match="object"):
        Digest().add([1, object()])
    wrapped = model.clone()
    wrapped.add_wrapper_with_key("apply_model", "other", lambda ex, *a, **k: ex(*a, **k))
    with pytest.raises(UnknownError, match="wrappers"):
        fingerprint(wrapped)
    assert not folder.exists() or not entries(folder)


@pytest.mark.parametrize("damage", [lambda data: data[:-50], lambda data: b"", lambda data: b"x" * 100])
def test_a_broken_entry_is_made_anew(folder, model, damage):
    cache.cached(made, model, 1)
    (entry,) = entries(folder)
    entry.write_bytes(damage(entry.read_bytes()))
    again, was_read = cache.cached(lambda: made(2.0), model, 1)
    assert not was_read and float(again.latents.mean()) == 2
    assert float(cache.cached(never, model, 1)[0].latents.mean()) == 2


def test_the_least_recently_used_go_first(folder, model, monkeypatch):
    for number in range(4):
        cache.cached(made, model, number)
        os.utime(max(entries(folder), key=lambda p: p.stat().st_mtime), (1000.0 + number,) * 2)
    size = entries(folder)[0].stat().st_size
    cache.cached(never, model, 0)  # the oldest, now the most recently used
    monkeypatch.setattr(cache, "LIMIT", 3 * size + size // 2)
    cache.cached(made, model, 4)
    assert len(entries(folder)) == 3
    assert [cache._read(folder / f"{fingerprint(model, n)}{store.SUFFIX}") is not None for n in range(5)] == [
        True,
        False,
        False,
        True,
        True,
    ]


def test_what_a_crash_left_is_removed_when_it_is_old(folder, model):
    folder.mkdir(parents=True)
    old, young = folder / "a.1.part", folder / "b.2.part"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * cache.STALE,) * 2)
    cache.cached(made, model, 1)
    assert not old.exists() and young.exists()


def test_an_inversion_that_a_file_cannot_hold_is_made_all_the_same(folder, model, caplog):
    odd = replace(RECORD, conditioning=[[RECORD.conditioning[0][0], {"control": object()}]])
    assert cache.cached(lambda: odd, model, 1) == (odd, False)
    assert "not kept on disk" in caplog.text and not entries(folder)


def test_a_folder_that_cannot_be_written_costs_nothing_but_the_making(folder, model, caplog):
    folder.parent.parent.mkdir(exist_ok=True)
    folder.parent.write_text("a file where the folder should be")
    assert cache.cached(made, model, 1)[1] is False
    assert "not kept on disk" in caplog.text


def _worker(folder, start, failures):
    """Write and read entries against others that do the same, with room for two of them."""
    try:
        cache.LIMIT = 2 * 30_000
        start.wait()
        for turn in range(30):
            path = folder / f"{turn % 4}{store.SUFFIX}"
            found = cache._read(path)
            assert found is None or torch.equal(found.latents, RECORD.latents * (turn % 4 + 1))
            cache._write(made(turn % 4 + 1), path)
            cache._evict(folder)
    except BaseException as error:
        failures.put(repr(error))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the test's processes are forks")
def test_several_processes(folder):
    folder.mkdir(parents=True)
    context = multiprocessing.get_context("fork")
    start, failures = context.Event(), context.Queue()
    workers = [context.Process(target=_worker, args=(folder, start, failures)) for _ in range(4)]
    for worker in workers:
        worker.start()
    start.set()
    for worker in workers:
        worker.join(120)
    assert failures.empty() and all(worker.exitcode == 0 for worker in workers)
    assert not list(folder.glob("*.part"))
    assert all(torch.isfinite(store.read(path, path.name).latents).all() for path in entries(folder))
