"""Stands in for torch_directml when ComfyUI is started with --directml: its device is the simulated one."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.extend([str(HERE.parent), str(HERE.parents[2] / "demo")])

import simulated  # noqa: E402
import torch  # noqa: E402


def device(*_: object) -> torch.device:
    return simulated.DEVICE


def device_name(*_: object) -> str:
    return "simulated"


def device_count() -> int:
    return 1


def has_float64(*_: object) -> bool:
    return True
