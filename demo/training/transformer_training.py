"""How the demo transformer is trained: `python demo/train.py --transformer --minutes 8`.

By the clock, with the demo model's text encoder and autoencoder as they are. The output is written anew every minute,
so that a call that is stopped leaves what it has reached. Uses a GPU when there is one.
"""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from bundle import load
from bundle import transformer as demo_transformer
from comfy.ldm.flux.model import Flux
from scenes import captions
from torch import Tensor
from training import flow, network
from training import training_data as data
from training.by_clock import Training, clock_options

SEED = 20_26
PUT_RIGHT_FROM = 0.75
"""From this share of the time on the transformer also learns to put disturbed scenes right."""
POOL_SHARE = 0.1
"""Of the time, which rendering may take at most."""
AT_ONCE = 8
"""Batches that are drawn together: where a GPU computes, drawing waits for it."""
OUTER = ("img_in", "txt_in", "time_in", "_modulation", "final_layer")


def new_model(options: argparse.Namespace, device: torch.device) -> Flux:
    """A transformer at random, or the one to refine."""
    config = demo_transformer.transformer_config(options.width, *options.blocks)
    tensors: dict[str, Tensor] = {}
    if options.refine is not None:
        config, tensors = demo_transformer.read_transformer(options.refine)
    model = flow.new_transformer(config, torch.device("cpu"))
    network.initialise(model, torch.Generator().manual_seed(SEED))
    if tensors:
        model.load_state_dict({k: v.float() for k, v in tensors.items()})
    return model.to(device)


@torch.no_grad()
def text_states(text: Any, said: list[str], device: torch.device) -> Tensor:
    """Text states (N, 77, C) of captions, as the host computes them."""
    tokens = network.tokenize(said).to(device)
    return torch.cat([text(part)[0] for part in tokens.split(250)]).half()


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Ends what is done inside with a TimeoutError after so many seconds, where the system has alarms."""

    def ring(*_: Any) -> None:
        raise TimeoutError(f"{seconds} s were not enough")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def works(velocity: flow.Velocity, batch: data.Batch, states: Tensor, seconds: int) -> bool:
    """Whether a velocity and its gradient can be computed here and soon: compiling needs more than torch."""
    try:
        with at_most(seconds):
            _loss(velocity, batch, states).backward()
    except Exception as error:  # whatever the compilers of this machine raise
        told = str(error).splitlines()
        print(f"not compiled: {type(error).__name__}: {told[0] if told else ''}", flush=True)
        return False
    return True


def _loss(velocity: flow.Velocity, batch: data.Batch, states: Tensor) -> Tensor:
    with torch.autocast(states.device.type, torch.bfloat16, enabled=states.device.type == "cuda"):
        found = velocity(batch.noisy, batch.t, states[batch.said].float())
    return (found.float() - batch.wanted).square().mean()


def train(training: Training[Flux], pool: data.Pool, states: Tensor, options: argparse.Namespace, end: float) -> None:
    """Learn velocities from captions until `time.monotonic()` is `end`."""
    rng = torch.Generator(pool.latents.device).manual_seed(SEED + 1)
    velocity = flow.Velocity(training.model, compiled=False)
    if options.compile_within:
        compiled = flow.Velocity(training.model, compiled=True)
        first = next(flow.draw_batches(pool, options.batch, 1, rng, put_right=False))
        velocity = compiled if works(compiled, first, states, options.compile_within) else velocity
    for passed in training.until(end):
        for batch in flow.draw_batches(pool, options.batch, AT_ONCE, rng, passed >= PUT_RIGHT_FROM):
            training.update(_loss(velocity, batch, states), passed)


def main(arguments: list[str]) -> int:
    """Train, and write the transformer's file."""
    start = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transformer", action="store_true", help="what made this module be called")
    clock_options(parser)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--scenes", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=demo_transformer.WIDTH)
    parser.add_argument("--blocks", type=int, nargs=2, default=(demo_transformer.DOUBLE, demo_transformer.SINGLE))
    parser.add_argument("--compile-within", type=int, default=100, help="seconds, 0: not at all")
    parser.add_argument("--refine", type=Path, help="start from the weights of a transformer's file")
    parser.add_argument("--demo-model", type=Path, default=load.FILE, help="for its text encoder and autoencoder")
    parser.add_argument("--output", type=Path, default=demo_transformer.TRANSFORMER_FILE)
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.manual_seed(SEED)
    parts = load.read_parts(options.demo_model)
    vae, text = network.Autoencoder(), network.new_text_model()
    for name, module in (("vae", vae), ("text", text)):
        module.load_state_dict({k: v.float() for k, v in parts[name].items()})
        module.to(device).requires_grad_(False)
    training = Training(new_model(options, device), options, OUTER, demo_transformer.PREFIX)
    print(f"{sum(w.numel() for w in training.weights) / 1e6:.2f} million weights on {device}", flush=True)
    states, end = text_states(text, captions.all_captions(), device), start + 60 * options.minutes
    pool = data.draw_pool_within(vae, device, options.scenes, SEED, start + (end - start) * POOL_SHARE)
    print(f"{len(pool.latents)} scenes after {time.monotonic() - start:.0f} s", flush=True)
    train(training, pool, states, options, end)
    training.save()
    print(f"done after {training.step} steps: {options.output}")
    return 0
