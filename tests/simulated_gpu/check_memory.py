"""Memory of the device: a run keeps what it must of the source, and what ends in the middle leaves nothing behind."""

from __future__ import annotations

import gc

import device
import pytest
import torch
from acts import METHODS, PLAIN, Place, edit, guidance, measured

HALF = Place(device.DEVICE, dtype=torch.float16)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_gives_its_memory_back(name: str) -> None:
    assert measured(HALF, name).counts.live == 0


@pytest.mark.parametrize("name", ["CPAM refined", "MasaCtrl words", "Local Blend", "PnP negative", "guided"])
def test_out_of_memory_in_the_middle_leaves_nothing(name: str) -> None:
    """The error is the device's own, its memory comes back, and the next run is bit-identical to one before."""
    method, guided = (PLAIN, guidance(iterations=1)) if name == "guided" else (name, None)
    before = measured(HALF, method, guided=guided)
    gc.collect()
    live = device.live()
    with (
        pytest.raises(torch.OutOfMemoryError, match="as told"),
        device.out_of_memory(before.counts.allocations * 2 // 3),
    ):
        edit(HALF, method, guided=guided)
    gc.collect()
    assert device.live() == live
    assert torch.equal(edit(HALF, method, guided=guided), before.latent)
