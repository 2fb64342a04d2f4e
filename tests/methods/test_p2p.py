"""Prompt-to-Prompt on the engine: its windows, its equality with explicit maps, and what must stay as it was."""

from __future__ import annotations

import logging
from dataclasses import replace
from types import SimpleNamespace

import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine import install as engine
from attention_edit.attention.engine.acts import Site
from attention_edit.attention.engine.call import AttentionCall, Features
from attention_edit.attention.engine.plan import Plan
from attention_edit.attention.engine.run import Run
from attention_edit.attention.engine.site import Own
from attention_edit.attention.methods.background import ExactBackground
from attention_edit.attention.methods.cpam import CPAM
from attention_edit.attention.methods.fpe import FPE
from attention_edit.attention.methods.p2p import P2P, REFINE, SWAP
from attention_edit.host.families import SD1
from prompts import prompt
from sources import FAMILIES, generated

CAT, DOG, BLACK = prompt("a cat on a mat"), prompt("a dog on a mat"), prompt("a black cat on a mat")
HEADS, WIDTH, SIDE = 2, 8, 4


def split(x):
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def probabilities(q, k):
    return (split(q) @ split(k).transpose(-1, -2) / (WIDTH**0.5)).softmax(-1)


def attend(q, k, v, **_):
    return (probabilities(q, k) @ split(v)).transpose(1, 2).flatten(2)


def random(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make_call(control, step=0, batch=1, repeats=1, chunks=2):
    """Cross-attention with random features in float64; the host repeats the text `repeats` times."""
    sigmas = [float(s) for s in range(50, 0, -1)]
    run = Run(SD1, 0, [*sigmas, 0.0], (SIDE, SIDE), SimpleNamespace(conds={}), plan=Plan((control,)))
    run.move_to(sigmas[step])
    run.states[control] = control.begin(run)
    rows, length = chunks * batch, control.target.length
    q = random(rows, SIDE * SIDE, HEADS * WIDTH, seed=1)
    k, v = (random(rows, length, HEADS * WIDTH, seed=2 + i).repeat(1, repeats, 1) for i in range(2))
    source = Features(
        random(rows, SIDE * SIDE, HEADS * WIDTH, seed=5),
        *(random(rows, control.source.length, HEADS * WIDTH, seed=6 + i) for i in range(2)),
    )
    return AttentionCall(
        run=run,
        layer=SD1.layers[9],
        shape=(SIDE, SIDE),
        q=q,
        k=k,
        v=v,
        conditional=(False, True)[:chunks],
        batch=batch,
        own=Own(lambda: attend(q, k, v), plain=True),
        attend=attend,
        source=source,
        state=run.states[control],
        heads=HEADS,
        lengths=(length,) * chunks,
    )


def test_self_maps_cost_one_attention():
    """All rows go through it, the unconditional ones with their own parts."""
    call, asked = make_call(P2P(CAT, DOG)), []
    counted = replace(call, attend=lambda q, k, v, **_: (asked.append(len(q)), attend(q, k, v))[1])
    out = P2P(CAT, DOG).keep_self(counted)
    assert asked == [2]
    assert torch.allclose(out[1:], attend(call.source.q[1:], call.source.k[1:], call.v[1:]))


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize(
    "control",
    [
        P2P(CAT, DOG),
        P2P(CAT, DOG, windows=[("dog", 0.0, 0.0)]),
        P2P(CAT, BLACK, weights=[("black", 3.0), ("cat", -1.0)]),
        P2P(CAT, prompt("a pelargonium on a mat"), compat=True),
        P2P(CAT, prompt("a cat on a mat" + " and a very big dog" * 20)),
    ],
)
def test_the_output_is_that_of_the_rewritten_map(control, repeats):
    """Without forming it, and without renormalising; unconditional rows stay as they are."""
    call = make_call(control, repeats=repeats, batch=2)
    length = control.target.length
    source = probabilities(call.source.q, call.source.k)
    own = probabilities(call.q, call.k).unflatten(-1, (repeats, length)).sum(-2)
    mapping = call.state.now(call.run)
    rewritten = source @ mapping.transfer.double() + own * mapping.keep.double()
    expected = (rewritten @ split(call.v[:, :length])).transpose(1, 2).flatten(2)
    out = control.rewrite(call)
    assert torch.equal(out[:2], call.own()[:2])
    assert torch.allclose(out[2:], expected[2:], rtol=1e-9, atol=1e-12)
    assert torch.allclose(control.rewritten(call.state, call, source, own), rewritten, rtol=1e-6)


@pytest.mark.parametrize(("end", "rows"), [(0.8, 40), (0.4, 20), (0.5, 25), (1.0, 50), (0.0, 0), (0.01, 0), (0.02, 1)])
def test_the_cross_window_counts_as_the_official_table(end, rows):
    """It has one row more than there are steps: int(c * 51) rows are on."""
    control = P2P(CAT, DOG, cross=(0.0, end))
    assert sum(bool(control.gate(step, 50).any()) for step in range(50)) == rows


def test_windows_of_words_come_before_the_general_one():
    control = P2P(CAT, DOG, cross=(0.1, 0.8), windows=[("dog", 0.0, 0.4), ("mat", 0.5, 0.5)])
    dog, mat, on = (DOG.find(word)[0] for word in ("dog", "mat", "on"))
    table = torch.stack([control.gate(step, 50) for step in range(50)])
    assert [int(table[:, token].sum()) for token in (dog, mat, on)] == [20, 0, 35]
    assert table[0, dog] == 1 and table[4, on] == 0 and table[5, on] == 1


@pytest.mark.parametrize(("window", "steps"), [((0.0, 0.4), range(20)), ((0.1, 0.58), range(5, 29)), ((0.0, 0.0), [])])
def test_the_self_window(window, steps):
    control = P2P(CAT, DOG, cross=(0.0, 1.0), self_window=window)
    kept = [step for step in range(50) if make_call(control, step).run.acting.reads(Site.SELF, 2)]
    assert kept == list(steps)


@FAMILIES
@pytest.mark.parametrize("packed", [False, True])
def test_identical_prompts_give_the_source(kind, v, packed):
    """The same prompt from the same noise: every map is the source's, and so is the image."""
    model = tiny.tiny_model(kind, v)
    inversion, image = generated(model, kind, steps=2 if kind == "SDXL" else 4)
    control = P2P(CAT, CAT, cross=(0.0, 1.0), self_window=(0.0, 1.0))
    out = edits.run(model, inversion, control, kind=kind, packed=packed, positive=5, sampler="ddim")
    assert edits.difference(out, image) < 1e-4


@pytest.mark.parametrize("control", [P2P(CAT, DOG, cross=(0, 0), self_window=(0, 0)), P2P(CAT, DOG, cross=(0.5, 0.5))])
def test_no_windows_are_the_stock_sampler_bit_for_bit(model, inversion, control):
    if control.self_window != (0, 0):
        control = P2P(CAT, DOG, cross=control.cross, self_window=(0.9, 0.9))
    assert torch.equal(edits.run(model, inversion, control), edits.run(model, inversion))


def test_weights_of_one_change_nothing(model, inversion):
    plain = edits.run(model, inversion, P2P(CAT, BLACK))
    assert torch.equal(edits.run(model, inversion, P2P(CAT, BLACK, weights=[("black", 1.0)])), plain)
    assert not torch.equal(edits.run(model, inversion, P2P(CAT, BLACK, weights=[("black", 4.0)])), plain)


@FAMILIES
def test_packed_and_separate_alike(kind, v):
    model = tiny.tiny_model(kind, v)
    inversion = edits.invert(model, kind, steps=2)
    control = P2P(CAT, BLACK, weights=[("black", 2.0)])
    separate, packed = (edits.run(model, inversion, control, kind=kind, packed=p) for p in (False, True))
    assert edits.difference(packed, separate) < 1e-4
    assert not torch.equal(separate, edits.run(model, inversion, kind=kind))


@pytest.mark.parametrize("tokens", [154, 231])
def test_prompts_of_other_lengths(model, inversion, tokens):
    """The host repeats texts to a common length; the source's keeps its own 77 tokens, packed or not."""
    target = prompt("a cat on a mat" + " and dogs" * (40 if tokens == 154 else 85))
    assert target.length == tokens
    results = []
    for packed in (False, True):
        patched = engine.install(model, P2P(CAT, target), inversion, packed)
        patched = engine.pin(patched, inversion, tuple(inversion.schedule))
        stub = torch.tensor([14.6, 0.0])
        results.append(tiny.sample(patched, tiny.prompt(2, tokens=tokens), tiny.prompt(3), edits.run_start(), stub))
    assert edits.difference(results[1], results[0]) < 1e-4


@pytest.mark.parametrize("packed", [False, True])
def test_a_source_prompt_that_is_longer_than_the_targets(model, packed):
    """Its tokens beyond the target's 77 are read in every step, though the host's text has been cut before."""
    source = prompt("a cat on a mat" + " and dogs" * 40)
    states = tiny.prompt(5, tokens=154)
    with torch.inference_mode():
        record = edits.DDIMInversion(4)(model, {"samples": tiny.latent(1)}, states).inversion
    seen = []

    class Spy(P2P):
        def rewrite(self, call):
            seen.append(call.source.k.shape[1])
            return super().rewrite(call)

    edits.run(model, record, Spy(source, CAT, cross=(0.0, 1.0)), packed=packed)
    assert set(seen) == {154}


def test_prompts_of_other_conditionings_are_refused(model, inversion):
    long = prompt("a cat on a mat" + " and dogs" * 40)
    with pytest.raises(ValueError, match=r"sampler's positive conditioning has 77 text tokens.*target.*154"):
        edits.run(model, inversion, P2P(CAT, long))
    with pytest.raises(ValueError, match=r"inversion's source conditioning has 77 text tokens.*source.*154"):
        edits.run(model, inversion, P2P(long, CAT))


def test_a_combined_positive_is_refused(model, inversion):
    patched = engine.install(model, P2P(CAT, DOG), inversion)
    patched = engine.pin(patched, inversion, tuple(inversion.schedule))
    with pytest.raises(ValueError, match="2 parts"):
        stub = torch.tensor([14.6, 0.0])
        tiny.sample(patched, tiny.prompt(2) + tiny.prompt(4), tiny.prompt(3), edits.run_start(), stub)


def test_modes():
    assert torch.equal(P2P(CAT, DOG).mapping.transfer, P2P(CAT, DOG, mode=SWAP).mapping.transfer)
    assert P2P(CAT, DOG, mode=REFINE).mapping.keep[DOG.find("dog")[0]] == 1
    assert P2P(CAT, BLACK).mapping.keep[BLACK.find("black")[0]] == 1
    with pytest.raises(ValueError, match="Choose refine"):
        P2P(CAT, BLACK, mode=SWAP).check()
    with pytest.raises(ValueError, match="'horse' is not in the prompt"):
        P2P(CAT, DOG, windows=[("horse", 0, 1)]).check()


def test_evaluations(model, caplog):
    """49 rows of inversion before, 98 of the target, and the source's until the longest window ends."""
    inversion = edits.recorded(model)
    assert edits.planned(model, inversion, P2P(CAT, DOG)) == (40, 98)
    assert edits.planned(model, inversion, P2P(CAT, DOG, cross=(0, 0.4), self_window=(0, 0.5))) == (25, 98)
    assert edits.planned(model, inversion, P2P(CAT, DOG, cross=(0, 1))) == (49, 98)
    with caplog.at_level(logging.INFO):
        edits.run(model, edits.recorded(model, steps=5), P2P(CAT, DOG, cross=(0.0, 0.5)))
    assert "plans 11 UNet evaluations (3 source, 8 target): Prompt-to-Prompt" in caplog.text
    assert "Attention Edit: 11 UNet evaluations" in caplog.text


def test_features_are_kept_only_while_they_are_read(model, inversion):
    run = make_call(P2P(CAT, DOG, cross=(0.0, 0.4), self_window=(0.2, 0.8)), step=30).run
    assert run.acting.reads(Site.SELF, 2) == set("qk") and not run.acting.reads(Site.CROSS, 2)
    assert not run.acting.reads(Site.SELF, 0)


def test_composes_with_exact_background_and_with_cpams_text(model, inversion):
    """CPAM's localized extraction stands on the rewritten attention, whichever node comes first."""
    edits.run(model, inversion, P2P(CAT, DOG), ExactBackground(edits.box()))
    p2p, cpam = P2P(CAT, DOG, self_window=(0, 0)), CPAM(edits.masks(), normal_share=0.0)
    first, second = edits.run(model, inversion, p2p, cpam), edits.run(model, inversion, cpam, p2p)
    assert edits.difference(first, second) < 1e-4
    assert not torch.equal(first, edits.run(model, inversion, cpam))


def test_self_maps_twice_are_refused(model, inversion):
    with pytest.raises(ValueError, match=r"FPE and Prompt-to-Prompt.*self-attention.*0% to 40%"):
        edits.run(model, inversion, FPE(), P2P(CAT, DOG))
    edits.run(model, inversion, FPE(), P2P(CAT, DOG, self_window=(0, 0)))
