"""What is kept of the source for later edits: where it lies, and what a step that reads it asks of the device."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import device
import edits
import pytest
import tiny
import torch
from acts import PLAIN, STEPS, Place, edit, measured
from attention_edit.attention.engine import shelves
from attention_edit.attention.engine.recorded import Keeping, free_records, held_of
from attention_edit.attention.engine.shelves import DEVICE, DISK, RAM
from comfy.model_management import load_models_gpu

HALF = Place(device.DEVICE, dtype=torch.float16)
METHODS = ("CPAM", "FPE both halves", "P2P swap", "PnP")
LARGE = 1 << 40


@pytest.fixture
def inversion(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One of its own for each test, and with it a record of its own."""
    free_records()
    monkeypatch.setattr(shelves, "LEFT_FREE", 0)  # the host takes each device of this kind to have 1 GB
    return edits.invert(tiny.tiny_model("SD1", device=tiny.CPU), "SD1", steps=STEPS)


@pytest.mark.parametrize("where", [RAM, DEVICE, DISK])
@pytest.mark.parametrize("name", METHODS)
def test_the_second_edit_is_the_same_and_what_is_kept_lies_where_it_is_to(
    name: str, where: str, inversion: Any
) -> None:
    load_models_gpu([HALF.model])
    plain = edit(HALF, name, inversion=inversion)
    gc.collect()
    live, found = device.live(), []
    for _ in range(2):
        found.append(edit(HALF, name, inversion=inversion, keeping=Keeping(where, LARGE)))
        gc.collect()
        assert device.live() - live == (held_of(inversion) if where == DEVICE else 0)
    assert all(torch.equal(each, plain) for each in found) and held_of(inversion) > 0
    free_records()
    gc.collect()
    assert device.live() == live


def look_at(seen: list[tuple[int, int]], look: Callable[[], tuple[int, int]], *_: Any) -> None:
    seen.append(look())


@pytest.mark.parametrize(("where", "copies"), [(RAM, 1), (DEVICE, 0)])
@pytest.mark.parametrize("name", METHODS)
def test_a_step_waits_no_longer_and_fetches_its_features_in_one_copy(
    name: str, where: str, copies: int, inversion: Any
) -> None:
    """In the run that keeps and in the one that reads, beside what the edit copies without a record."""
    plain, without = measured(HALF, PLAIN).steps, measured(HALF, name).steps
    for more in (0, copies):
        seen: list[tuple[int, int]] = []
        counted = {"callback": partial(look_at, seen, device.snapshot())}
        edit(HALF, name, inversion=inversion, keeping=Keeping(where, LARGE), **counted)
        for (waits, sent), (waits_after, sent_after) in pairwise(seen):
            assert waits_after - waits <= max(w for w, _ in plain)
            assert sent_after - sent <= max(c for _, c in without) + more


def test_memory_that_runs_out_is_given_back(inversion: Any) -> None:
    """A record on the device goes when the edit finds no room, and the edit goes on."""
    keeping = Keeping(DEVICE, LARGE)
    plain = edit(HALF, "CPAM", inversion=inversion, keeping=keeping)
    with device.counted() as counts:
        edit(HALF, "CPAM", inversion=inversion, keeping=keeping)
    held = held_of(inversion)
    with device.out_of_memory(counts.allocations * 2 // 3):
        found = edit(HALF, "CPAM", inversion=inversion, keeping=keeping)
    assert torch.equal(found, plain) and held > 0 == held_of(inversion)
