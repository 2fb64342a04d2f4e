"""MAG-Edit: on what may stand underneath it, and on every inversion."""

from __future__ import annotations

import logging
from dataclasses import replace

import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine.install import install
from attention_edit.attention.masks.cells import resize
from attention_edit.attention.methods.cpam import CPAM
from attention_edit.attention.methods.p2p import P2P
from attention_edit.attention.methods.pnp import PnP
from attention_edit.inversion.direct import DirectInversion
from attention_edit.inversion.fixed_point import FixedPointInversion
from attention_edit.inversion.negative_prompt import NegativePromptInversion
from attention_edit.inversion.null_text import NullTextInversion
from mag_runs import CELLS, WORDS, Probe, guided, part
from prompts import prompt


def test_goes_with_cpam_and_the_source_runs_once_per_step(model, inversion, caplog):
    """Iterations add no row of the source; packed is the same as separate."""
    under = CPAM(edits.masks(), normal_share=0.0)
    results = []
    for packed in (False, True):
        patched = install(model, under, inversion, packed)
        with caplog.at_level(logging.INFO):
            results.append(guided(patched, inversion, part(iterations=3)))
    assert edits.difference(results[1], results[0]) < 1e-4
    assert not torch.equal(results[0], edits.run(model, inversion, under))
    steps = len(inversion.sigmas) - 1
    assert caplog.text.count(f"Attention Edit: {3 * steps} UNet evaluations") == 2
    assert "plans up to 6 iterations in 2 steps, worth 6 UNet evaluations" in caplog.text
    assert caplog.text.count(f"{3 * steps} UNet evaluations, and 6 passes for gradients") == 2


def test_goes_with_plug_and_play(model, inversion):
    """The source's residual features are constants of the pass too."""
    one = part(iterations=2, scale=50.0, checkpointing=False)
    out = guided(model, inversion, one, under=[PnP()])
    assert edits.difference(out, edits.run(model, inversion, PnP())) > 1e-4
    # Blocks that are computed again on the way back still take the source's features where PnP wants them.
    again = guided(model, inversion, replace(one, checkpointing=True), under=[PnP()])
    assert edits.difference(again, out) < 1e-4
    assert one.curve.worked()


INVERSIONS = {
    "offset 1": lambda model, _: edits.invert(model, steps=3, offset=1),
    "fixed point": lambda model, plain: FixedPointInversion()(model, plain, None, 1.0).inversion,
    "negative prompt": lambda _, plain: NegativePromptInversion()(None, plain, None, 1.0).inversion,
    "null text": lambda model, plain: NullTextInversion(inner=2)(model, plain, tiny.prompt(3), 7.5).inversion,
    "direct": lambda model, plain: DirectInversion(0.5)(model, plain, tiny.prompt(3), 7.5).inversion,
}


@pytest.mark.parametrize("kind", INVERSIONS)
def test_goes_with_any_inversion(model, kind):
    """On Prompt-to-Prompt: without iterations its run bit for bit; with them only what is under the mask moves."""
    with torch.inference_mode():
        inversion = INVERSIONS[kind](model, edits.invert(model, steps=3))
    under = P2P(prompt("a cat on a mat"), prompt("a cat red striped thing on a mat"))
    probe = Probe(WORDS, edits.box(), iterations=2, scale=50.0)
    out = guided(model, inversion, probe, under=[under])
    bare = edits.run(model, inversion, under)
    assert torch.equal(guided(model, inversion, part(iterations=0, blend=1.0), under=[under]), bare)
    assert edits.difference(out, bare) > 1e-3 and probe.curve.worked()
    inside = resize(edits.box(), CELLS)[:, None].expand(1, 4, -1, -1)
    assert probe.seen and all(torch.equal(before[~inside], after[~inside]) for before, after in probe.seen)
