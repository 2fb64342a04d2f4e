"""Train the demo model from nothing: `python demo/train.py`.

Shows progress, saves it, and goes on where it stopped when called again. Uses a GPU when there is one.
"""

from __future__ import annotations

import sys

from machine import host_process

if __name__ == "__main__":
    sys.exit(host_process.run(__file__, "training.training"))
