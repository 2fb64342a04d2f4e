"""Cases of a benchmark, each in a process of its own, so that its peak of memory is its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ENTRY = Path(__file__).resolve().parents[1] / "benchmark.py"


def run_cases(part: str, cases: Sequence[str], arguments: Sequence[str]) -> dict[str, dict[str, float]] | None:
    """What a part of `demo/benchmark.py` prints as JSON in its last line when it is called with `--case`, by case.

    Returns:
        None when a case failed; it has said why.
    """
    found = {}
    for case in cases:
        command = [sys.executable, str(ENTRY), part, *arguments, "--case", case]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            return None
        found[case] = json.loads(done.stdout.splitlines()[-1])
        print(f"{case}: {found[case]}", file=sys.stderr, flush=True)
    return found


COSTS = ("time", "against plain", "peak memory", "against plain")
"""The columns of `cost_cells`."""


def cost_cells(values: Mapping[str, float], plain: Mapping[str, float]) -> list[str]:
    """Seconds and memory of a case, each also as a multiple of the plain one's."""
    seconds, memory = values["seconds"], values["memory"]
    return [
        f"{seconds:.2f} s",
        f"{seconds / plain['seconds']:.2f}x",
        f"{memory:.2f} GB",
        f"{memory / plain['memory']:.2f}x",
    ]


def peak(device: Any) -> float:
    """Peak memory in GB: of the device, or of this process on a CPU."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    import resource

    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e9
