"""Memory of the device: a run keeps what it must of the source, and what ends in the middle leaves nothing behind."""

from __future__ import annotations

import gc

import device
import pytest
import tiny
import torch
from acts import METHODS, PLAIN, STEPS, Place, edit, guidance, measured
from attention_edit.attention.engine.acts import Site
from attention_edit.host.families import family_of

HALF = Place(device.DEVICE, dtype=torch.float16)

CHANNELS = {1: 32, 2: 64, 4: 128, 8: 128}
"""Of the tiny SD1.x's layers by scale."""

READ = {"FPE": 2, "MasaCtrl": 4, "CPAM": 2}
"""How many of a layer's queries, keys and values these methods read of the source: (q, k), (k, v) and (k, v).

MasaCtrl reads them for both halves of guidance."""


@pytest.mark.parametrize("name", READ)
def test_only_what_is_read_of_the_source_is_kept(name: str) -> None:
    """What lives between the source's pass and the edit's, in units of one feature of all layers that read it."""
    (control,) = METHODS[name](HALF)
    cells = {scale: (tiny.SIZE // scale) ** 2 for scale in CHANNELS}
    acts = control.acts_on(family_of(HALF.model))
    layers = next(act.layers for act in acts if act.at is Site.SELF)
    feature = sum(cells[layer.scale] * CHANNELS[layer.scale] * 2 for layer in layers)
    alive: list[int] = []
    measured(HALF, name)
    edit(HALF, name, on_pass=lambda: alive.append(device.live()))
    assert len(alive) == 2 * (STEPS - 1), "a pass of the source and one of the edit in each step"
    assert round((alive[-1] - alive[-2]) / feature) == READ[name]


@pytest.mark.parametrize("name", METHODS)
def test_a_run_gives_its_memory_back(name: str) -> None:
    assert measured(HALF, name).counts.live == 0


@pytest.mark.parametrize("name", ["CPAM refined", "Local Blend", "guided"])
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
