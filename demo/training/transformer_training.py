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
from safetensors.torch import save_file
from scenes import captions
from torch import Tensor
from training import flow, network
from training import training_data as data
from training.muon import descend, optimizers, take_in

SEED = 20_26
PUT_RIGHT_FROM = 0.75
"""From this share of the time on the transformer also learns to put disturbed scenes right."""
FALL_FROM = 0.4
"""From this share of the time on the learning rate falls, in a straight line to nothing."""
POOL_SHARE = 0.1
"""Of the time, which rendering may take at most."""
AT_ONCE = 8
"""Batches that are drawn together: where a GPU computes, drawing waits for it."""
OUTER = ("img_in", "txt_in", "time_in", "_modulation", "final_layer")
SAVED_EVERY, TOLD_EVERY = 60, 10
"""Seconds."""


class Training:
    """A transformer, its optimisers, and its averaged weights."""

    def __init__(self, model: Flux, options: argparse.Namespace) -> None:
        self.model, self.options, self.step = model, options, 0
        self.optimizers = optimizers(model, options.rate, OUTER)
        self.weights = [p for p in model.parameters()]
        self.averaged = [p.detach().clone() for p in self.weights]

    def update(self, loss: Tensor, passed: float) -> None:
        """One optimiser step after a share 0..1 of the time."""
        warm = min(1.0, (self.step + 1) / self.options.warm_up)
        falls = min(1.0, max(0.0, 1 - passed) / (1 - FALL_FROM))
        descend(self.optimizers, loss, self.weights, self.options.rate * warm * falls)
        self.step += 1
        take_in(self.averaged, self.weights, self.options.average, self.step)

    def save(self, path: Path) -> None:
        """Write the averaged weights in half precision, whole or not at all."""
        names = [name for name, _ in self.model.named_parameters()]
        tensors = {
            f"{demo_transformer.PREFIX}{name}": mean.to("cpu", torch.float16).contiguous()
            for name, mean in zip(names, self.averaged, strict=True)
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        save_file(tensors, part)
        part.replace(path)


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


def train(training: Training, pool: data.Pool, states: Tensor, options: argparse.Namespace, end: float) -> None:
    """Learn velocities from captions until `time.monotonic()` is `end`."""
    rng = torch.Generator(pool.latents.device).manual_seed(SEED + 1)
    velocity = flow.Velocity(training.model, compiled=False)
    if options.compile_within:
        compiled = flow.Velocity(training.model, compiled=True)
        first = next(flow.draw_batches(pool, options.batch, 1, rng, put_right=False))
        velocity = compiled if works(compiled, first, states, options.compile_within) else velocity
    begin = saved = told = time.monotonic()
    print(f"training begins with {end - begin:.0f} s left", flush=True)
    running, told_step = None, 0
    while (now := time.monotonic()) < end and training.step < options.steps:
        passed = (now - begin) / (end - begin)
        for batch in flow.draw_batches(pool, options.batch, AT_ONCE, rng, passed >= PUT_RIGHT_FROM):
            loss = _loss(velocity, batch, states)
            training.update(loss, passed)
            running = loss.detach() if running is None else running.lerp(loss.detach(), 0.02)
        if now - told > TOLD_EVERY and running is not None:
            pace = (training.step - told_step) / (now - told)
            print(f"{passed:4.0%}  step {training.step}  loss {running.item():.4f}  {pace:.2f} steps/s", flush=True)
            told, told_step = now, training.step
        if now - saved > SAVED_EVERY:
            training.save(options.output)
            saved = now


def main(arguments: list[str]) -> int:
    """Train, and write the transformer's file."""
    start = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transformer", action="store_true", help="what made this module be called")
    parser.add_argument("--minutes", type=float, default=8, help="all that this call may take")
    parser.add_argument("--steps", type=int, default=10**9, help="stop after these")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--warm-up", type=int, default=300, help="steps")
    parser.add_argument("--average", type=float, default=0.999)
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
    training = Training(new_model(options, device), options)
    print(f"{sum(w.numel() for w in training.weights) / 1e6:.2f} million weights on {device}", flush=True)
    states, end = text_states(text, captions.all_captions(), device), start + 60 * options.minutes
    pool = data.draw_pool_within(vae, device, options.scenes, SEED, start + (end - start) * POOL_SHARE)
    print(f"{len(pool.latents)} scenes after {time.monotonic() - start:.0f} s", flush=True)
    train(training, pool, states, options, end)
    training.save(options.output)
    print(f"done after {training.step} steps: {options.output}")
    return 0
