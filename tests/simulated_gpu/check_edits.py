"""Every method, inversion and map on the simulated GPU: one device per operation, finite, and near the CPU's result.

Tolerance. A type keeps p bits, so each stored value is off by at most u = 2^-p of itself: 2^-24, 2^-11 and 2^-8 for
float32, float16 and bfloat16. The residual stream of these UNets is stored about 50 times on the way, each time with
an error of its own, which add up as their root, 7 u. Guidance 7.5 takes 7.5 times one prediction less 6.5 times the
other: independent errors grow by (7.5^2 + 6.5^2)^0.5, 10. Rounded weights are as much again: 1.4. Together 100 u of
what a prediction weighs; without guidance it is 10 u. Sums of products are taken in float32: for half types that is
exact, but float32's own are off by the root of their number of terms, up to 128 x 9 in a convolution, which a CPU
adds in eight lanes at least: 12 times as much. The host has another attention for the CPU than for this device, so
that float32 too is not the same bit for bit.

Measured at guidance 7.5: float32 45 to 198 u, the half types 12 to 38 u. That the error follows u over sixteen
powers of two is what says that it is rounding; a mask dropped or a half of guidance swapped is off by tens of
percents in every type.
"""

from __future__ import annotations

from functools import cache

import acts
import device
import pytest
import tiny
import torch
from acts import BY_THRESHOLD, METHODS, Place
from inverting import INVERSIONS, invert
from torch import Tensor

FEW = ("CPAM", "MasaCtrl words", "P2P swap", "DDIM", "null text", "source from prompt")
"""Methods and inversions that stand for all in bfloat16, whose range is float32's: what float16 bears, it does."""
TYPES = (torch.float32, torch.float16, torch.bfloat16)
ROUNDINGS = {torch.float32: 100 * 12, torch.float16: 100, torch.bfloat16: 100}


def unit(dtype: torch.dtype) -> float:
    """Largest relative error of one stored value."""
    return torch.finfo(dtype).eps / 2


JUMPS = {"Proximal": 0.05}
"""Share of a result's values, those furthest off, that are not compared in half types.

Proximal Guidance's hold gives a value back to the source where guidance is below a quantile. 100 u of float16 are 5 %
of that threshold, and within these lie 5 % of normally distributed values: they go either way.
"""


def assert_near(found: Tensor, expected: Tensor, dtype: torch.dtype, jumps: float = 0.0) -> None:
    assert found.device == tiny.CPU and found.shape == expected.shape
    assert torch.isfinite(found).all()
    off = (found.float() - expected.float()).abs().flatten().sort().values
    compared = off[: len(off) - int(jumps * len(off))] if dtype != torch.float32 else off
    error = float(compared.norm() / expected.float().norm())
    assert error <= ROUNDINGS[dtype] * unit(dtype), f"off by {error / unit(dtype):.0f} units of {dtype}"


@cache
def of_the_cpu(kind: str, name: str, dtype: torch.dtype) -> Tensor:
    """A method's result on the CPU, in float32 where it does not go by a threshold."""
    return acts.edit(Place(tiny.CPU, kind, dtype if name in BY_THRESHOLD else torch.float32), name)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("dtype", "packed", "text_there"),
    [
        pytest.param(torch.float16, False, False, id="float16"),
        pytest.param(torch.float32, True, True, id="float32-packed-text_there"),
    ],
)
def test_methods(name: str, dtype: torch.dtype, packed: bool, text_there: bool) -> None:
    place = Place(device.DEVICE, "SD1", dtype, text_there)
    assert_near(acts.measured(place, name, packed).latent, of_the_cpu("SD1", name, dtype), dtype, JUMPS.get(name, 0.0))


@pytest.mark.parametrize("name", [name for name in METHODS if name in FEW])
def test_methods_in_bfloat16(name: str) -> None:
    place = Place(device.DEVICE, "SD1", torch.bfloat16, text_there=True)
    assert_near(acts.edit(place, name, packed=True), of_the_cpu("SD1", name, torch.bfloat16), torch.bfloat16)


# A method meets one of the other families, in one of the types; all methods together meet both in all of them.
# SDXL's runs take several times as long, so that every fourth is one.
@pytest.mark.parametrize("name", METHODS)
def test_families(name: str) -> None:
    number = list(METHODS).index(name)
    kind, dtype = "SDXL" if number % 4 == 1 else "SD2", TYPES[number % 3]
    place = Place(device.DEVICE, kind, dtype, text_there=number % 8 < 4)
    found = acts.edit(place, name, packed=number % 3 == 0)
    assert_near(found, of_the_cpu(kind, name, dtype), dtype, JUMPS.get(name, 0.0))


@cache
def inverted_by_the_cpu(name: str) -> Tensor:
    return invert(Place(tiny.CPU), name)


LEFT_OUT = {(torch.float32, "null text"), (torch.float16, "null text, checkpoints")}
"""The same way back with and without checkpoints: a type has one of them."""
INVERTED = [
    (name, dtype)
    for dtype in TYPES
    for name in INVERSIONS
    if (dtype, name) not in LEFT_OUT and (dtype != torch.bfloat16 or name in FEW)
]


@pytest.mark.parametrize(("name", "dtype"), INVERTED)
def test_inversions(name: str, dtype: torch.dtype) -> None:
    place = Place(device.DEVICE, "SD1", dtype, text_there=dtype != torch.float16)
    assert_near(invert(place, name), inverted_by_the_cpu(name), dtype)


@cache
def guided_by_the_cpu() -> Tensor:
    return acts.edit(Place(tiny.CPU), "CPAM", guided=acts.guidance(checkpointing=False, iterations=1))


@pytest.mark.parametrize(
    ("dtype", "checkpointing"), [(torch.float32, True), (torch.float16, False), (torch.bfloat16, True)]
)
def test_guidance(dtype: torch.dtype, checkpointing: bool) -> None:
    part = acts.guidance(checkpointing=checkpointing, iterations=1)
    place = Place(device.DEVICE, "SD1", dtype, text_there=checkpointing)
    assert_near(acts.edit(place, "CPAM", guided=part), guided_by_the_cpu(), dtype)


@cache
def recorded_by_the_cpu() -> dict[str, Tensor]:
    return acts.recorded_maps(Place(tiny.CPU))


@pytest.mark.parametrize("dtype", TYPES)
def test_maps(dtype: torch.dtype) -> None:
    """What is shown of a run lies on the CPU, and is near the CPU's."""
    expected = recorded_by_the_cpu()
    found = acts.recorded_maps(Place(device.DEVICE, "SD1", dtype, text_there=dtype == torch.bfloat16))
    for name, value in found.items():
        assert_near(value, expected[name], dtype)


def test_two_devices_in_one_operation_are_an_error() -> None:
    """What these tests rely on."""
    there = torch.ones(3, device=device.DEVICE)
    with pytest.raises(RuntimeError, match="same device"):
        there + torch.ones(3)
    assert float((there + torch.ones(())).sum()) == 6
