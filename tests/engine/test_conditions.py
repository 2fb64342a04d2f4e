"""The help's table of what acts on which rows, for every method: measured, with a ControlNet and a T2I-Adapter.

Users' most frequent complaint of ports is that the pose vanishes under MasaCtrl: the condition must reach the edit, and
must not reach the source.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import adapters
import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine import install as engine
from attention_edit.attention.engine.plan import plan_of
from attention_edit.attention.methods.masafusion import MaSaFusion
from attention_edit.host.marks import SOURCES
from comfy.patcher_extension import WrappersMP
from every_method import WHOLE
from house import PACK

TEXTS = {"positive": 2, "negative": 3, "source prompt": 5, "negative of its own": 8}
"""Prompts by the seed of their states."""
CONDITION = " + condition"
TITLE = "## Which conditioning acts where"


def measured(model, method, condition, packed=False):
    """What the rows of each part are conditioned on, by part: texts, and whether the condition is added."""
    inversion = edits.invert(model, steps=3)
    patched = engine.pin(method(model, inversion), inversion, tuple(inversion.schedule))
    patched = engine.with_plan(patched, replace(plan_of(patched), packed=packed))
    texts, added = defaultdict(set), defaultdict(set)

    def wrapper(executor, x, t, context, y=None, control=None, transformer_options=None, **kwargs):
        call = transformer_options["attention_edit"]
        for chunk, (row, role) in enumerate(zip(call.rows, call.roles, strict=True)):
            part = "Source" if role in SOURCES else row.part or ("further row" if " row " in role else "Edit")
            states = context[chunk * call.batch]
            texts[part] |= {name for name, seed in TEXTS.items() if torch.equal(states, tiny.prompt(seed)[0][0][0])}
            added[part].add(any(x is not None for features in (control or {}).values() for x in features))
        return executor(x, t, context, y, control, transformer_options, **kwargs)

    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", wrapper)
    positive = adapters.with_control(tiny.prompt(2), condition)
    tiny.sample(patched, positive, tiny.prompt(3), edits.run_start(), torch.tensor([14.6, 0.0]))
    assert all(len(ways) == 1 for ways in added.values()), "in all calls alike"
    return {
        part: ", ".join(name for name in TEXTS if name in found) + (CONDITION if True in added[part] else "")
        for part, found in texts.items()
    }


def table():
    """The help's rows by method: (Edit, beside it, Source)."""
    lines = (
        (PACK / "js" / "docs" / "AttnEditMaSaFusion.md")
        .read_text("utf-8")
        .split(TITLE)[1]
        .split("\n## ")[0]
        .splitlines()
    )
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {name: tuple(cells) for name, *cells in rows[2:]}


def test_the_table_has_every_method():
    assert set(table()) == set(WHOLE)


@pytest.mark.parametrize("name", WHOLE)
def test_the_table_is_true(model, name):
    found = measured(model, WHOLE[name], adapters.control_net())
    edit, source = found.pop("Edit"), found.pop("Source", "")
    beside = "; ".join(f"{part}: {what}" for part, what in sorted(found.items()))
    assert table()[name] == (edit, beside, source)
    assert edit == f"positive, negative{CONDITION}" and CONDITION not in source


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["MasaCtrl", "MaSaFusion"])
def test_an_adapter_in_one_call_or_several(model, name, packed):
    expected = measured(model, WHOLE[name], adapters.control_net())
    assert measured(model, WHOLE[name], adapters.t2i_adapter(), packed) == expected


def test_a_condition_that_is_put_on_both_prompts_reaches_every_row_but_the_sources(model, inversion):
    """As Apply ControlNet of today does it, instead of having the host spread it from the positive prompt."""
    condition, seen = adapters.control_net(), []
    both = [adapters.with_control(tiny.prompt(seed), condition, spread=False) for seed in (2, 3)]
    spread = adapters.with_control(tiny.prompt(2), condition)
    for positive, negative in ((both[0], both[1]), (spread, tiny.prompt(3))):
        patched = engine.install(model, MaSaFusion(edits.box()), inversion)
        patched = engine.pin(patched, inversion, tuple(inversion.schedule))
        seen.append(tiny.sample(patched, positive, negative, edits.run_start(), torch.tensor([14.6, 0.0])))
    assert torch.equal(seen[0], seen[1])
