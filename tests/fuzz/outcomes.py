"""Outcomes of cases: refusals in words of the pack, what is left on a model, and tensors that are the same."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from cases import tensors
from house import PACK, ROOMS

LEAST = 25
"""Letters of a text that can say a cure."""


@cache
def _raises(file: str) -> tuple[range, ...]:
    """The lines of a file's raise statements."""
    found = ast.walk(ast.parse(Path(file).read_text("utf-8")))
    return tuple(range(n.lineno, (n.end_lineno or n.lineno) + 1) for n in found if isinstance(n, ast.Raise))


def is_refusal(error: BaseException) -> bool:
    """Whether an exception is one of the pack's own: a ValueError or RuntimeError that a `raise` of the pack raises."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or type(error) not in {ValueError, RuntimeError}:
        return False
    file = Path(trace.tb_frame.f_code.co_filename).resolve()
    rooms = [PACK / room for room in ROOMS]
    told = str(error)
    own = any(room in file.parents for room in rooms) and any(trace.tb_lineno in r for r in _raises(str(file)))
    return own and len(told) >= LEAST and not told[0].islower() and told.rstrip().endswith((".", ")"))


def left_on(model: Any) -> dict[str, Any]:
    """Everything by which a host MODEL and its modules could be changed, to be compared."""
    net = model.model
    found: dict[str, Any] = {
        "options": _plain(model.model_options),
        "patcher": [_plain(getattr(model, name)) for name in ("patches", "object_patches", "wrappers", "callbacks")],
        "model": sorted(vars(net)),
        "cast": str(net.manual_cast_dtype),
    }
    for name, module in net.diffusion_model.named_modules():
        hooks = len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
        own = {key: value for key, value in vars(module).items() if isinstance(value, bool | int | float | str)}
        found[name] = (hooks, sorted(vars(module)), own)
    for name, weight in net.diffusion_model.named_parameters():
        found[f"{name}:"] = (weight.requires_grad, weight.grad is None, weight.dtype, float(weight.double().sum()))
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value if isinstance(value, bool | int | float | str | None) else f"{type(value).__name__} {id(value)}"


def not_finite(made: Mapping[str, Any]) -> list[str]:
    """The names of tensors that hold NaN or infinity."""
    return [name for name, x in tensors(made) if x.is_floating_point() and not bool(torch.isfinite(x).all())]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Assert that results are the same bit for bit."""
    assert one.keys() == other.keys()
    for name, x in one.items():
        assert torch.equal(x.nan_to_num(), other[name].nan_to_num()), f"{name} differs by {difference(x, other[name])}"


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference of two tensors, relative to the largest value."""
    if one.shape != other.shape:
        return float("inf")
    one, other = one.double(), other.double()
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-12)) if one.numel() else 0.0


CLOSE = 2e-3
"""Relative difference that float32 may leave between two ways: 6e-8, by what guidance and a few steps make of it."""


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    """Assert that two latents are the same up to rounding."""
    found = difference(one, other)
    assert found <= CLOSE, f"they differ by {found:.2g} of the largest value, and rounding leaves at most {CLOSE}"
