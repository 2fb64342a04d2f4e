"""What a method of ours and another pack's patch come to on one model: who acts, and what is said."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import edits
import tiny
import tiny_joint
import torch
from attention_edit.attention.engine.install import install, pin
from attention_edit.attention.methods.background import ExactBackground
from attention_edit.attention.methods.cpam import CPAM
from attention_edit.attention.methods.fpe import FPE
from attention_edit.attention.methods.masactrl import MasaCtrl
from attention_edit.inversion.record import Inversion
from every_method import WHOLE, Put
from other_packs import Other
from torch import Tensor

ORDERS = ("before", "after")
"""Of the other pack's node and ours."""
ACTS, NAMED, REFUSED, SILENT = "acts", "named", "refused", "nothing said"
SHARE = 0.1
"""Of what one does alone: less than that beside the other is no effect. What is dead has 1e-5 of it."""


@dataclass(frozen=True, eq=False)
class Bench:
    """What pairs are tried on.

    Attributes:
        model: makes a host MODEL. invert: makes an inversion of it in so many steps.
        sample: runs a pinned MODEL with a prompt's conditioning. text: that conditioning.
        methods: ours, by the name that the table has.
    """

    name: str
    model: Callable[[], Any]
    invert: Callable[[Any, int], Inversion]
    sample: Callable[[Any, Any], Tensor]
    text: Callable[[], Any]
    methods: Mapping[str, Put]


def _control(make: Callable[[], Any]) -> Put:
    return lambda model, inversion: install(model, make(), inversion)


def _sampled_sd1(model: Any, text: Any) -> Tensor:
    return tiny.sample(model, text, tiny.prompt(3), edits.run_start(), torch.tensor([14.6, 0.0]))


def _joint(kind: str, name: str) -> Bench:
    """A transformer with the methods that work there."""
    start = torch.zeros_like(tiny_joint.joint_latent(1, kind))
    pixels = 8 * start.shape[-1]
    left = torch.arange(pixels).expand(1, pixels, pixels) < pixels // 2
    methods: dict[str, Callable[[], Any]] = {
        "CPAM": lambda: CPAM(edits.masks(left), normal_share=0.0, retain_layer=0),
        "Exact Background": lambda: ExactBackground(left),
        "FPE": lambda: FPE(layers="all", end=1.0),
        "MasaCtrl": lambda: MasaCtrl(start=0.0, first_layer=0),
    }

    def sample(model: Any, text: Any) -> Tensor:
        negative, sigmas = tiny_joint.joint_prompt(3, kind), torch.tensor([1.0, 0.0])
        return tiny_joint.joint_sample(model, text, negative, start, start, sigmas, 3.0)

    return Bench(
        name,
        partial(tiny_joint.joint_model, kind),
        lambda model, steps: tiny_joint.joint_inversion(model, kind, steps=steps),
        sample,
        partial(tiny_joint.joint_prompt, 2, kind),
        {shown: _control(make) for shown, make in methods.items()},
    )


_SMALL = {
    "num_res_blocks": [1, 1, 1, 1],
    "transformer_depth": [1, 1, 1, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 0, 0],
}
"""Of SD1.x's UNet: one block in the place of two in each level."""
SD1 = Bench(
    "SD1.x",
    partial(tiny.tiny_model, **_SMALL),
    lambda model, steps: edits.invert(model, steps=steps),
    _sampled_sd1,
    partial(tiny.prompt, 2),
    {name: method for name, method in WHOLE.items() if name != "Local Blend"},  # whose blend one step of noise leaves
)
FLUX, SD3 = _joint("Flux", "Flux.1"), _joint("SD3", "SD3")


@dataclass(frozen=True, eq=False)
class Outcome:
    """A run's latent, or None and why it was refused; and its remarks."""

    latent: Tensor | None
    said: frozenset[str]


class _Listener(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.add(record.getMessage())


@contextmanager
def _heard() -> Iterator[set[str]]:
    """The remarks of a run, as they go to the log."""
    log, listener = logging.getLogger("attention_edit"), _Listener()
    log.addHandler(listener)
    try:
        yield listener.texts
    finally:
        log.removeHandler(listener)


@cache
def _prepared(bench: Bench, steps: int) -> tuple[Any, Inversion]:
    model = _model(bench)
    return model, bench.invert(model, steps)


@cache
def _model(bench: Bench) -> Any:
    return bench.model()


@cache
def ran(bench: Bench, steps: int, method: str = "", other: Other | None = None, order: str = ORDERS[0]) -> Outcome:
    """A run with a method and another pack's patch, each of which may be left out."""
    model, inversion = _prepared(bench, steps)
    text = bench.text()
    with _heard() as said:
        try:
            if other is not None:
                text = other.prompt(text)
                model = other.on(model) if order == ORDERS[0] else model
            model = bench.methods[method](model, inversion) if method else model
            if other is not None and order == ORDERS[1]:
                model = other.on(model)
            latent = bench.sample(pin(model, inversion, tuple(inversion.schedule)), text)
        except (ValueError, RuntimeError) as error:
            return Outcome(None, frozenset([str(error)]))
    return Outcome(latent, frozenset(said))


def _latent(outcome: Outcome) -> Tensor:
    assert outcome.latent is not None, outcome.said
    return outcome.latent


def does_something(bench: Bench, other: Other) -> bool:
    """Whether the other pack's patch changes a run without an edit."""
    return edits.difference(_latent(ran(bench, other.steps, "", other)), _latent(ran(bench, other.steps))) > 1e-3


def outcome(bench: Bench, other: Other, method: str, order: str) -> str:
    """What a pair comes to: ACTS, NAMED, REFUSED, or who does nothing with nothing said."""
    steps = other.steps
    both, alone = ran(bench, steps, method, other, order), ran(bench, steps, method)
    if both.latent is None:
        return REFUSED
    stock, ours, theirs = (_latent(ran(bench, steps))), _latent(alone), _latent(ran(bench, steps, "", other))
    assert torch.isfinite(both.latent).all()
    effects = {
        other.name: edits.difference(both.latent, ours) / edits.difference(theirs, stock),
        method: edits.difference(both.latent, theirs) / edits.difference(ours, stock),
    }
    dead = [name for name, effect in effects.items() if effect < SHARE]
    if both.said - alone.said:
        return NAMED
    return f"{SILENT}: {' and '.join(dead)}" if dead else ACTS


@cache
def cells(bench: Bench, other: Other) -> tuple[str, ...]:
    """The table's cells for another pack, a method each; where the orders differ the cell says both."""
    found = []
    for method in bench.methods:
        ways = {order: outcome(bench, other, method, order) for order in (ORDERS if other.has_order else ORDERS[:1])}
        same = len(set(ways.values())) == 1
        found.append(ways[ORDERS[0]] if same else "; ".join(f"{order}: {what}" for order, what in ways.items()))
    return tuple(found)
