"""How the demo adapter is trained: `python demo/train.py --adapter --minutes 40`.

By the clock, on the demo model as it is: the model's own loss, with the adapter's features of each scene's outlines
added in the UNet by the host's own code. Many scenes are shown without a caption, and some disturbed, so that the
outline has to tell what is where. One CPU core will do.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from bundle import adapter as demo_adapter
from bundle import load
from bundle.sketch import outlines
from scenes import captions
from torch import Tensor, nn
from training import network
from training import training_data as data
from training.by_clock import Training, clock_options
from training.transformer_training import text_states

SEED = 20_27
UNSAID_SHARE = 0.3
"""Of the scenes, shown without a caption (beside those without one in every training)."""
NARROWEST, WIDEST = 1.5, 4.0
"""Lines that are learned, in pixels, so that sketches by hand will do."""
OUTER = ("conv_in",)
POOL_SHARE = 0.15
"""Of the time, which rendering may take at most."""


def adapter_loss(unet: nn.Module, adapter: nn.Module, pool: data.Pool, states: Tensor, batch: data.Batch) -> Tensor:
    """The demo model's loss of a batch, with the features of its scenes' outlines.

    Args:
        states: text states (N, 77, C) of all captions.
    """
    size, device = len(batch.chosen), batch.noisy.device
    width = torch.rand(size, device=device) * (WIDEST - NARROWEST) + NARROWEST
    control = adapter(outlines(pool.chosen(batch.chosen), width))
    said = torch.where(torch.rand(size, device=device) < UNSAID_SHARE, 0, batch.said)
    found = unet(batch.noisy, batch.t.float(), context=states[said].float(), control=control)
    return ((found - batch.wanted).square().mean((1, 2, 3)) * batch.weight).mean()


def main(arguments: list[str]) -> int:
    """Train, and write the adapter's file."""
    start = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter", action="store_true", help="what made this module be called")
    clock_options(parser)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--scenes", type=int, default=20_000)
    parser.add_argument("--demo-model", type=Path, default=load.FILE, help="which the adapter is for")
    parser.add_argument("--output", type=Path, default=demo_adapter.ADAPTER_FILE)
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(SEED)
    parts = load.read_parts(options.demo_model)
    vae, unet, text = network.Autoencoder(), network.new_unet(), network.new_text_model()
    for name, module in (("vae", vae), ("unet", unet), ("text", text)):
        module.load_state_dict({k: v.float() for k, v in parts[name].items()})
        module.to(device).requires_grad_(False)
    training = Training(demo_adapter.new_adapter().to(device), options, OUTER)
    print(f"{sum(w.numel() for w in training.weights) / 1e6:.2f} million weights on {device}", flush=True)
    states, end = text_states(text, captions.all_captions(), device), start + 60 * options.minutes
    pool = data.draw_pool_within(vae, device, options.scenes, SEED, start + (end - start) * POOL_SHARE)
    print(f"{len(pool.latents)} scenes after {time.monotonic() - start:.0f} s", flush=True)
    rng = torch.Generator(device).manual_seed(SEED + 1)
    for passed in training.until(end):
        batch = data.draw(pool, options.batch, rng, put_right=True, cubic=True)
        training.update(adapter_loss(unet, training.model, pool, states, batch), passed)
    training.save()
    print(f"done after {training.step} steps: {options.output}")
    return 0
