"""What a step of an edit asks of the device: waits and copies to it, against plain sampling.

A GPU works while the host prepares what comes next, until the host reads a value (a wait) or copies from memory of
its own (a copy to the device, which stalls the stream when that memory is pageable). With pytest's -s the
lines of the pack that do it are printed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import acts
import device
import pytest
import torch
from acts import METHODS, PLAIN, STEPS, Place
from attention_edit.inversion.null_text import NullTextInversion

HALF = Place(device.DEVICE, dtype=torch.float16)
MORE_COPIES = 2
"""Copies to the device per step that a method without gradients may add to plain sampling's."""

KNOWN_COPIES: dict[str, int] = {}
"""Copies per step of methods that are above the bound; a method whose number falls is to be lowered or taken out."""

KNOWN_WAITS: dict[str, int] = {}
"""The same for waits per step; plain sampling's are the bound."""

KNOWN_GUIDED: dict[str, int] = {}
"""Waits per iteration of runs with gradients that are above one."""


def judge(found: int, bound: int, known: dict[str, int], name: str, what: str) -> None:
    """Fail above the bound, or off what is known to be above it."""
    if name not in known:
        assert found <= bound, f"{name}: {found} {what}, at most {bound} allowed"
        return
    assert found <= known[name], f"{name}: {found} {what}, worse than the known {known[name]} (aim: {bound})"
    better = f"lower it to {found}" if found > bound else "take it out"
    assert found == known[name], f"{name}: only {found} {what} now, {known[name]} are on the list; {better}"


def steps_of(name: str) -> tuple[tuple[int, int], ...]:
    """Waits and copies to the device of each step after the first."""
    return acts.measured(HALF, name).steps


def test_plain_sampling_waits_once_a_step() -> None:
    """What the bounds are made of: the host's sampler reads one noise level and sends one."""
    assert set(steps_of(PLAIN)) == {(1, 1)}


@pytest.mark.parametrize("name", [name for name in METHODS if name != PLAIN])
def test_copies_to_the_device(name: str) -> None:
    bound = max(copies for _, copies in steps_of(PLAIN)) + MORE_COPIES
    judge(max(copies for _, copies in steps_of(name)), bound, KNOWN_COPIES, name, "copies to the device per step")


@pytest.mark.parametrize("name", [name for name in METHODS if name != PLAIN])
def test_waits(name: str) -> None:
    bound = max(waits for waits, _ in steps_of(PLAIN))
    judge(max(waits for waits, _ in steps_of(name)), bound, KNOWN_WAITS, name, "waits per step")


def waits_of_guidance(iterations: int, **values: object) -> int:
    with device.counted() as counts:
        acts.edit(HALF, PLAIN, guided=acts.guidance(iterations=iterations, **values))
    return counts.waits


def waits_of_null_text(iterations: int) -> int:
    by = NullTextInversion(inner=iterations, early_stop=0.0, checkpointing=False)
    with torch.inference_mode(), device.counted() as counts:
        by(HALF.model, acts.source(HALF.kind), HALF.text(3), 7.5)
    return counts.waits


@pytest.mark.parametrize(
    ("name", "waits"), [("MAG", waits_of_guidance), ("null text", waits_of_null_text)], ids=["MAG", "null text"]
)
def test_guided_steps_wait_once_an_iteration(name: str, waits: Callable[[int], int]) -> None:
    """One iteration more in each step costs one wait more in each step."""
    acts.measured(HALF, PLAIN)  # the host has loaded the weights
    more = waits(2) - waits(1)
    iterations = STEPS - 1
    assert more % iterations == 0
    judge(more // iterations, 1, KNOWN_GUIDED, name, "waits per iteration")


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    """Afterwards, what whole runs wait for and copy, by line: pytest's -s shows it."""
    yield
    for name in METHODS:
        found = acts.measured(HALF, name)
        print(f"\n{name}: per step {found.steps} (waits, copies); in the whole run:\n{found.counts.table()}")
