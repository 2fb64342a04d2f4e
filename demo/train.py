"""Train the demo model from nothing: `python demo/train.py`.

Shows progress, saves it, and goes on where it stopped when called again. Uses a GPU when there is one. With
`--transformer` it trains the demo transformer instead, on the demo model's text encoder and autoencoder, for as many
`--minutes` as told; that wants a GPU. With `--adapter` it trains the demo adapter on the demo model, for which a CPU
will do.
"""

from __future__ import annotations

import sys

from machine import host_process

if __name__ == "__main__":
    kinds = [kind for kind in ("transformer", "adapter") if f"--{kind}" in sys.argv]
    module = f"training.{kinds[0]}_training" if kinds else "training.training"
    sys.exit(host_process.run(__file__, module))
