"""Measure cost: `python demo/benchmark.py [inversions|mag|masks|second] [OPTIONS]`.

inversions (without a word too): time and memory of each inversion on a full-size UNet of random weights; mag: a guided
step of MAG-Edit on the same; masks: what the size of a mask costs edits of the demo model; second: what a second edit
of an image costs. `--help` after a word lists its options.
"""

from __future__ import annotations

import sys

from machine import host_process

if __name__ == "__main__":
    sys.exit(host_process.run(__file__, "measure.benchmark"))
