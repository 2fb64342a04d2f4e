"""The source branch is the same whatever is done to the target: last table of the methods, "source row = vanilla"."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import edits
import pytest
import torch
from attention_edit.attention.engine.acts import Act, How, Site
from attention_edit.attention.engine.control import Control
from attention_edit.attention.methods.cpam import CPAM
from attention_edit.attention.methods.fpe import FPE
from attention_edit.attention.methods.masactrl import MasaCtrl
from attention_edit.attention.methods.p2p import P2P
from attention_edit.attention.methods.pnp import PnP
from attention_edit.host.families import SD1
from prompts import prompt

CONTROLS = {
    "CPAM": lambda: CPAM(edits.masks(retain=True), normal_share=0.0),
    "FPE": FPE,
    "MasaCtrl": MasaCtrl,
    "P2P": lambda: P2P(prompt("a red cat"), prompt("a blue cat")),
    "PnP": PnP,
}


@dataclass(frozen=True, eq=False)
class Witness(Control):
    """Keeps the source's queries, keys and values of every step and layer."""

    seen: dict[tuple[str, int, int], tuple[torch.Tensor, ...]] = field(default_factory=dict)
    name = "witness"

    def acts_on(self, family):
        return tuple(
            Act(site, family.layers, do=partial(self.look, site.value), reads="qkv", how=How.LOOKS)
            for site in (Site.SELF, Site.CROSS)
        )

    def look(self, kind, call):
        features = call.source.q, call.source.k, call.source.v
        self.seen[kind, call.run.step, call.layer.index] = tuple(x[: call.batch].clone() for x in features)


def witnessed(model, inversion, *controls, packed=False):
    witness = Witness()
    edits.run(model, inversion, *controls, witness, packed=packed)
    return witness.seen


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", CONTROLS)
def test_no_edit_changes_the_source(model, inversion, name, packed):
    """Bit for bit in a call of its own; up to a larger batch's rounding with others' rows, or with both halves."""
    alone, control = witnessed(model, inversion), CONTROLS[name]()
    beside = witnessed(model, inversion, control, packed=packed)
    exact = not packed and not any(act.own_half for act in control.acts_on(SD1))
    assert set(beside) == set(alone) and len(alone) == 2 * 16 * 3
    for place, features in alone.items():
        for a, b in zip(features, beside[place], strict=True):
            assert torch.equal(a, b) if exact else edits.difference(b, a) < 1e-4, place


def test_the_witness_sees_another_source(model, inversion):
    """What it compares does depend on the source: on other noise levels and on another image."""
    alone = witnessed(model, inversion)
    other = witnessed(model, edits.invert(model, batch=1, steps=4, offset=1))
    assert not torch.equal(alone["self", 1, 0][0], alone["self", 2, 0][0])
    assert not torch.equal(alone["self", 1, 0][0], other["self", 1, 0][0])
