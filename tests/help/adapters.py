"""Tiny random T2I-Adapters and ControlNets of the host's own classes, for the tiny SD1.x model."""

from __future__ import annotations

from typing import Any

import comfy.cldm.cldm
import comfy.controlnet
import comfy.t2i_adapter.adapter
import tiny
import torch
from torch import nn


def hint(seed: int = 0) -> torch.Tensor:
    """A sketch (1, 3, H, W) of random pixels."""
    return torch.rand(1, 3, 8 * tiny.SIZE, 8 * tiny.SIZE, generator=torch.Generator().manual_seed(seed))


def _random(module: nn.Module, scale: float) -> None:
    rng = torch.Generator().manual_seed(1)
    for weight in module.parameters():
        fan = weight[0].numel() if weight.ndim > 1 else 1
        value = torch.randn(weight.shape, generator=rng) * (scale / fan**0.5 if weight.ndim > 1 else 0.1 * scale)
        weight.data = value


def t2i_adapter(scale: float = 1.0, seed: int = 0) -> comfy.controlnet.T2IAdapter:
    """A T2I-Adapter that looks at a sketch only; at scale 0 it adds nothing."""
    net = comfy.t2i_adapter.adapter.Adapter_light(channels=[32, 64, 128, 128], nums_rb=1, cin=64)
    _random(net, scale)
    adapter = comfy.controlnet.T2IAdapter(net, 1, 8, "nearest-exact", device=tiny.DEVICE)
    return adapter.set_cond_hint(hint(seed))


def control_net(seed: int = 0) -> comfy.controlnet.ControlNet:
    """A ControlNet, which looks at the latent and at the text too."""
    config = tiny.tiny_model().model.model_config.unet_config
    net = comfy.cldm.cldm.ControlNet(**config, hint_channels=3)
    _random(net, 1.0)
    control = comfy.controlnet.ControlNet(net.eval(), load_device=tiny.DEVICE)
    return control.set_cond_hint(hint(seed))


def with_control(conditioning: list[Any], control: Any, spread: bool = True) -> list[Any]:
    """A CONDITIONING with a control on it, as the host's nodes put it there; `spread`: it reaches the negative too."""
    beside = {"control": control, "control_apply_to_uncond": spread}
    return [[states, {**options, **beside}] for states, options in conditioning]
