"""Training by the clock: the rate falls with the time that has passed, and the file holds averaged weights."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from training.muon import descend, optimizers, take_in

FALL_FROM = 0.4
"""From this share of the time on the learning rate falls, in a straight line to nothing."""
SAVED_EVERY, TOLD_EVERY = 60, 10
"""Seconds."""


def clock_options(parser: argparse.ArgumentParser) -> None:
    """Add what a training by the clock can be told: `minutes`, `steps`, `warm_up` and `average`."""
    parser.add_argument("--minutes", type=float, default=8, help="all that this call may take")
    parser.add_argument("--steps", type=int, default=10**9, help="stop after these")
    parser.add_argument("--warm-up", type=int, default=300, help="steps")
    parser.add_argument("--average", type=float, default=0.999)


Network = TypeVar("Network", bound=nn.Module)


class Training(Generic[Network]):
    """A network, its optimisers, and its averaged weights."""

    def __init__(self, model: Network, options: argparse.Namespace, outer: tuple[str, ...], prefix: str = "") -> None:
        """`options`: has `rate`, `output` and what `clock_options` adds. `outer`: as `optimizers` takes it.
        `prefix`: with which all names in the file begin."""
        self.model, self.options, self.prefix, self.step = model, options, prefix, 0
        self.running: Tensor | None = None
        self.optimizers = optimizers(model, options.rate, outer)
        self.weights = [p for p in model.parameters()]
        self.averaged = [p.detach().clone() for p in self.weights]

    def until(self, end: float) -> Iterator[float]:
        """Shares 0..1 of the time that has passed, until `time.monotonic()` is `end` or all steps are done.

        Tells and saves now and then how far it has come.
        """
        begin = saved = told = time.monotonic()
        print(f"training begins with {end - begin:.0f} s left", flush=True)
        told_step = 0
        while (now := time.monotonic()) < end and self.step < self.options.steps:
            passed = (now - begin) / (end - begin)
            yield passed
            if now - told > TOLD_EVERY and self.running is not None:
                pace = (self.step - told_step) / (now - told)
                loss = self.running.item()
                print(f"{passed:4.0%}  step {self.step}  loss {loss:.4f}  {pace:.2f} steps/s", flush=True)
                told, told_step = now, self.step
            if now - saved > SAVED_EVERY:
                self.save()
                saved = now

    def update(self, loss: Tensor, passed: float) -> None:
        """One optimiser step after a share 0..1 of the time."""
        warm = min(1.0, (self.step + 1) / self.options.warm_up)
        falls = min(1.0, max(0.0, 1 - passed) / (1 - FALL_FROM))
        descend(self.optimizers, loss, self.weights, self.options.rate * warm * falls)
        self.step += 1
        self.running = loss.detach() if self.running is None else self.running.lerp(loss.detach(), 0.02)
        take_in(self.averaged, self.weights, self.options.average, self.step)

    def save(self) -> None:
        """Write the averaged weights in half precision, whole or not at all."""
        path: Path = self.options.output
        names = [name for name, _ in self.model.named_parameters()]
        tensors = {
            f"{self.prefix}{name}": mean.to("cpu", torch.float16).contiguous()
            for name, mean in zip(names, self.averaged, strict=True)
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        save_file(tensors, part)
        part.replace(path)
