"""Which benchmark `python demo/benchmark.py` runs."""

from __future__ import annotations

import importlib

PARTS = ("inversions", "mag", "masks", "second")


def main(arguments: list[str]) -> int:
    """Run the benchmark that the first argument names, the first of PARTS without one; returns the exit code."""
    part, rest = (arguments[0], arguments[1:]) if arguments[:1] and arguments[0] in PARTS else (PARTS[0], arguments)
    return importlib.import_module(f"measure.benchmark_{part}").main(rest)
