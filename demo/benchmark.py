"""Measure cost on a full-size UNet of random weights: `python demo/benchmark.py [inversions|mag] [OPTIONS]`.

inversions (without a word too): time and memory of each inversion; mag: a guided step of MAG-Edit. `--help` after
either lists its options.
"""

from __future__ import annotations

import sys

from machine import host_process

if __name__ == "__main__":
    sys.exit(host_process.run(__file__, "measure.benchmark"))
