"""Measure the demo model and what is done with it: `python demo/evaluate.py [--model-bar] [--edits [--injection]
[--ablations]] [--variations] [--turns] [--masafusion] [--inversions] [--flow-inversions] [--masks] [--maps] [--mag]
[--mag-ablations] [--probe] [--dpl]`.

Without any of these the first two are done; --maps measures how well attention maps find objects, and --probe
what they know of words, of any checkpoint (--model with a file or a name in models/checkpoints). The results are
printed as Markdown tables and written, with pictures, to a folder (build/evaluation unless told otherwise). Uses a
GPU when there is one.
"""

from __future__ import annotations

import sys

from machine import host_process

if __name__ == "__main__":
    sys.exit(host_process.run(__file__, "measure.evaluation"))
