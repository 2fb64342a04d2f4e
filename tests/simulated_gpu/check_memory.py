"""Memory of the device: a run keeps what it must of the source, and what ends in the middle leaves nothing behind."""

from __future__ import annotations

import gc
from typing import Any

import device
import pytest
import torch
from acts import METHODS, PLAIN, Place, edit, guidance, measured

HALF = Place(device.DEVICE, dtype=torch.float16)


def allocations_of(name: str, **options: Any) -> int:
    with device.counted() as counts:
        edit(HALF, name, **options)
    return counts.allocations


@pytest.mark.parametrize("name", METHODS)
def test_a_run_gives_its_memory_back(name: str) -> None:
    assert measured(HALF, name).counts.live == 0


@pytest.mark.parametrize("share", [0.3, 0.7])
@pytest.mark.parametrize("name", ["CPAM refined", "MasaCtrl words", "Local Blend", "PnP negative", "guided"])
def test_out_of_memory_in_the_middle_leaves_nothing(name: str, share: float) -> None:
    """The error is the device's own, its memory comes back, and the next run is bit-identical to one before."""
    method, guided = (PLAIN, guidance()) if name == "guided" else (name, None)
    expected = edit(HALF, method, guided=guided)
    allocations = allocations_of(method, guided=guided)
    gc.collect()
    before = device.live()
    with pytest.raises(torch.OutOfMemoryError, match="as told"), device.out_of_memory(int(share * allocations)):
        edit(HALF, method, guided=guided)
    gc.collect()
    assert device.live() == before
    assert torch.equal(edit(HALF, method, guided=guided), expected)
