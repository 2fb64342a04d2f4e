"""The host is told, before it loads the model, what the source's features will take."""

from __future__ import annotations

import comfy.sampler_helpers
import edits
import pytest
import tiny
from attention_edit.attention.engine.install import install
from attention_edit.attention.engine.memory import kept_bytes
from attention_edit.attention.engine.plan import plan_of
from attention_edit.attention.engine.run import Run
from attention_edit.attention.methods.cpam import CPAM
from attention_edit.attention.methods.fpe import FPE
from attention_edit.attention.methods.masactrl import MasaCtrl
from attention_edit.attention.methods.p2p import P2P
from attention_edit.attention.methods.pnp import PnP
from attention_edit.host.families import family_of
from prompts import prompt

CONTROLS = {
    "CPAM": lambda: CPAM(edits.masks()),
    "FPE": FPE,
    "MasaCtrl": lambda: MasaCtrl(start=0.0),
    "P2P": lambda: P2P(prompt("a red cat"), prompt("a blue cat")),
    "PnP": PnP,
}


def held(monkeypatch, model, inversion, control):
    """The most bytes that a run really keeps of the source."""
    most, forget = [0], Run.forget_source

    def spy(self):
        parts = {
            (place, role, part): getattr(features, part)
            for place, roles in self.captured.items()
            for role, features in roles.items()
            for part in "qkv"
            if getattr(features, part) is not None
        }
        # A residual block's k and v are one tensor; only what is read counts.
        most[0] = max(
            most[0], sum(x.numel() * x.element_size() for (_, _, p), x in parts.items() if p in control_reads)
        )
        forget(self)

    control_reads = {part for act in control.acts_on(family_of(model)) for part in act.reads}
    monkeypatch.setattr(Run, "forget_source", spy)
    edits.run(model, inversion, control)
    return most[0]


@pytest.mark.parametrize("name", CONTROLS)
def test_the_number_is_what_is_kept(model, inversion, monkeypatch, name):
    control = CONTROLS[name]()
    patched = install(model, control, inversion)
    size = tuple(inversion.latents.shape[-2:])
    told = kept_bytes(plan_of(patched), family_of(patched), patched, size)
    really = held(monkeypatch, model, inversion, control)
    halves = 2 if any(act.own_half for act in control.acts_on(family_of(model))) else 1
    assert 0 < really <= told <= 1.05 * halves * really, "halves are kept twice only where their texts differ"


def test_the_host_makes_room_for_it(model, inversion, monkeypatch):
    asked, estimate = [], comfy.sampler_helpers.estimate_memory

    def spy(model, noise_shape, conds):
        asked.append(noise_shape[0])
        return estimate(model, noise_shape, conds)

    monkeypatch.setattr(comfy.sampler_helpers, "estimate_memory", spy)
    edits.run(model, inversion)
    edits.run(model, inversion, FPE())
    assert asked[1] > asked[0] == 1


def test_an_edit_that_keeps_nothing_asks_for_nothing(model, inversion):
    from attention_edit.attention.methods.background import ExactBackground

    patched = install(model, ExactBackground(edits.box()), inversion)
    assert kept_bytes(plan_of(patched), family_of(patched), patched, (tiny.SIZE, tiny.SIZE)) == 0
