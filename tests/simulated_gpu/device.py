"""The device that the checks of this folder run on: the simulated one, or a card that is there.

    import device                  # before comfy is imported, which is told `--directml 0` for the simulated one
    with device.counted() as counts:
        ...
    print(counts.waits, counts.to_device)

ATTENTION_EDIT_DEVICE=cuda takes the card. Nothing depends on that: it shows what the simulated one cannot, kernels
that round in another way, and how long things take.
"""

from __future__ import annotations

import os

if os.environ.get("ATTENTION_EDIT_DEVICE") == "cuda":
    from card import DEVICE, NAME, counted, live, out_of_memory, snapshot
else:
    from simulated import DEVICE, NAME, counted, live, out_of_memory, snapshot

__all__ = ["DEVICE", "NAME", "counted", "live", "out_of_memory", "snapshot"]
