"""The help's table of what acts on which rows, for every method: measured, with a ControlNet and a T2I-Adapter.

Users' most frequent complaint of ports is that the pose vanishes under MasaCtrl: the condition must reach the edit, and
must not reach the source.
"""

from __future__ import annotations

from collections import defaultdict

import adapters
import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine import install as engine
from attention_edit.attention.masks.cells import as_mask
from attention_edit.attention.methods.background import ExactBackground
from attention_edit.attention.methods.cpam import CPAM
from attention_edit.attention.methods.fpe import FPE
from attention_edit.attention.methods.local_blend import LocalBlend
from attention_edit.attention.methods.mag.control import MAG
from attention_edit.attention.methods.masactrl import MasaCtrl
from attention_edit.attention.methods.masafusion import MaSaFusion
from attention_edit.attention.methods.p2p import P2P
from attention_edit.attention.methods.pnp import PnP
from attention_edit.attention.methods.proximal import ProximalGuidance
from attention_edit.attention.methods.regions import RegionPrompts, make_region
from attention_edit.attention.methods.style_aligned import StyleAligned
from attention_edit.host.marks import SOURCES
from comfy.patcher_extension import WrappersMP
from house import PACK
from mag_runs import WORDS
from prompts import prompt

BOX, CAT, DOG = edits.box(), prompt("a red cat"), prompt("a red dog")
METHODS = {
    "CPAM": lambda: CPAM(edits.masks(), normal_share=0.0),
    "Exact Background": lambda: ExactBackground(BOX),
    "FPE": FPE,
    "Local Blend": lambda: LocalBlend(CAT, DOG, ("cat",), ("dog",)),
    "MAG-Edit": lambda: MAG(WORDS, BOX, iterations=1),
    "MasaCtrl": MasaCtrl,
    "MaSaFusion": lambda: MaSaFusion(BOX),
    "Plug-and-Play": lambda: PnP(negative=tiny.prompt(8)),
    "Prompt-to-Prompt": lambda: P2P(CAT, DOG),
    "Proximal Guidance": ProximalGuidance,
    "Region Prompts": lambda: RegionPrompts((make_region(as_mask(BOX, "box"), tiny.prompt(6)),)),
    "StyleAligned": StyleAligned,
}
TEXTS = {"positive": 2, "negative": 3, "source prompt": 5, "negative of its own": 8}
"""Prompts by the seed of their states."""
CONDITION = " + condition"
TITLE = "## Which conditioning acts where"


def measured(model, control, condition, packed=False):
    """What the rows of each part are conditioned on, by part: texts, and whether the condition is added."""
    inversion = edits.invert(model, steps=3)
    patched = engine.pin(engine.install(model, control, inversion, packed), inversion, tuple(inversion.schedule))
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
    assert set(table()) == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_the_table_is_true(model, name):
    found = measured(model, METHODS[name](), adapters.control_net())
    edit, source = found.pop("Edit"), found.pop("Source", "")
    beside = "; ".join(f"{part}: {what}" for part, what in sorted(found.items()))
    assert table()[name] == (edit, beside, source)
    assert edit == f"positive, negative{CONDITION}" and CONDITION not in source


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["MasaCtrl", "MaSaFusion"])
def test_an_adapter_in_one_call_or_several(model, name, packed):
    expected = measured(model, METHODS[name](), adapters.control_net())
    assert measured(model, METHODS[name](), adapters.t2i_adapter(), packed) == expected


def test_a_condition_that_is_put_on_both_prompts_reaches_every_row_but_the_sources(model, inversion):
    """As Apply ControlNet of today does it, instead of having the host spread it from the positive prompt."""
    condition, seen = adapters.control_net(), []
    both = [adapters.with_control(tiny.prompt(seed), condition, spread=False) for seed in (2, 3)]
    spread = adapters.with_control(tiny.prompt(2), condition)
    for positive, negative in ((both[0], both[1]), (spread, tiny.prompt(3))):
        patched = engine.install(model, MaSaFusion(BOX), inversion)
        patched = engine.pin(patched, inversion, tuple(inversion.schedule))
        seen.append(tiny.sample(patched, positive, negative, edits.run_start(), torch.tensor([14.6, 0.0])))
    assert torch.equal(seen[0], seen[1])
