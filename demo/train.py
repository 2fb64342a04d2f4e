"""Train the demo model from nothing: `python demo/train.py`.

Shows progress, saves it, and goes on where it stopped when called again. Uses a GPU when there is one. With
`--transformer` it trains the demo transformer instead, on the demo model's text encoder and autoencoder, for as many
`--minutes` as told; that wants a GPU.
"""

from __future__ import annotations

import sys

from machine import host_process

if __name__ == "__main__":
    module = "training.transformer_training" if "--transformer" in sys.argv else "training.training"
    sys.exit(host_process.run(__file__, module))
