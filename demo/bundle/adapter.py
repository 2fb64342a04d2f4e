"""The demo adapter: a T2I-Adapter for sketches (Mou et al. 2023) that fits the demo model, as the host's own objects.

The host's Adapter class in its T2IAdapter, as its ControlNet loader makes them. The loader itself takes the widths of
SD1.x for granted, where the levels of a UNet have 1, 2, 4 and 4 times the first one's channels; the demo model's have
1, 1, 1 and 2 times.
"""

from __future__ import annotations

from pathlib import Path

import comfy.controlnet
import comfy.t2i_adapter.adapter

from .load import UNET, check_tensors, read_tensors

ADAPTER_FILE = Path(__file__).with_name("adapter.safetensors")
SCALE = 8
"""Pixels for each cell of a latent, by which the adapter folds its picture."""


def new_adapter() -> comfy.t2i_adapter.adapter.Adapter:
    """The host's Adapter class with the demo model's widths and the settings of SD1.x's sketch adapters.

    It takes sketches (B, 1, S, S) and returns features for the last layer of each of the UNet's levels.
    """
    channels = [UNET["model_channels"] * times for times in UNET["channel_mult"]]
    return comfy.t2i_adapter.adapter.Adapter(
        channels=channels, nums_rb=2, cin=SCALE * SCALE, ksize=1, sk=True, use_conv=False, xl=False
    )


def load_demo_adapter(path: Path = ADAPTER_FILE) -> comfy.controlnet.T2IAdapter:
    """The demo adapter as the host's CONTROL_NET, the same kind of object that its ControlNet loader returns.

    Raises:
        DemoModelError: the file is missing, damaged, or something else than the demo adapter.
    """
    tensors = read_tensors(path)
    network = new_adapter().eval().requires_grad_(False)
    check_tensors(path, "adapter", tensors, network)
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return comfy.controlnet.T2IAdapter(network, network.input_channels, SCALE, "nearest-exact")
