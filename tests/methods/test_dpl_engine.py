"""A sampler run on the engine reads the learned text of its step, in the source's rows and in the target's."""

from __future__ import annotations

from dataclasses import replace

import dpl_runs
import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine import install as engine
from attention_edit.attention.methods.dpl.losses import Losses, Term
from attention_edit.attention.methods.fpe import FPE
from attention_edit.host.marks import STATES

NEVER = Losses(Term(1.0, 0.0, 25.0), Term(0.05, 0.0, 25.0), Term(0.05, 0.0, 50.0))
STUB = torch.tensor([14.6, 0.0])


@pytest.fixture(scope="module")
def case():
    return dpl_runs.Case()


@pytest.fixture(scope="module")
def found(case):
    return case.learn(how=dpl_runs.settings(iterations=2, inner=2, losses=NEVER, learning_rate=0.1))


def test_a_stock_sampler_follows_the_inversions_own_walk(case, found):
    """Euler on the pinned model with the source prompt as the target's, and any negative prompt."""
    record = found.inversion
    pinned = engine.pin(case.model, record, tuple(record.schedule))
    out = tiny.sample(pinned, record.conditioning, tiny.prompt(9), edits.run_start(), STUB)
    expected = case.model.get_model_object("latent_format").process_out(found.steps[0][-1].z)
    assert edits.difference(out, expected) < 1e-3
    plain = tiny.sample(pinned, case.positive, tiny.prompt(9), edits.run_start(), STUB)
    assert edits.difference(plain, expected) > 1e-3


@pytest.mark.parametrize("packed", [False, True])
def test_states_that_are_the_prompts_own_change_nothing(case, packed):
    """Bit for bit, in the source's rows and in the target's."""
    (states, options), count = case.positive[0], len(case.inversion.sigmas) - 1
    same = [[states, {**options, STATES: states[None].expand(count, -1, -1, -1)}]]
    control = FPE()
    outs = []
    for prompt in (case.positive, same):
        record = replace(case.inversion, conditioning=prompt)
        model = engine.install(case.model, control, record, packed)
        pinned = engine.pin(model, record, tuple(record.schedule))
        outs.append(tiny.sample(pinned, prompt, tiny.prompt(3), edits.run_start(), STUB))
    assert torch.equal(*outs)


def test_a_packed_source_reads_the_text_of_its_step(case, found):
    """As one that runs apart does, and otherwise than one with the plain prompt."""
    control = FPE(both_halves=True)
    apart, packed = (edits.run(case.model, found.inversion, control, packed=packed) for packed in (False, True))
    assert edits.difference(packed, apart) < 1e-4
    plain = replace(found.inversion, conditioning=case.positive)
    assert edits.difference(edits.run(case.model, plain, control), apart) > 1e-3
