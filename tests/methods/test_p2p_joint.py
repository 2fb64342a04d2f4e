"""Prompt-to-Prompt on joint attention, on tiny random transformers of the host's classes."""

from __future__ import annotations

import logging
from dataclasses import replace

import edits
import pytest
import tiny_joint
import torch
from attention_edit.attention.engine.install import install
from attention_edit.attention.engine.joint import JointSite
from attention_edit.attention.engine.run import Phase
from attention_edit.attention.methods.cpam import CPAM
from attention_edit.attention.methods.fpe import FPE
from attention_edit.attention.methods.masactrl import MasaCtrl
from attention_edit.attention.methods.p2p import P2P
from attention_edit.inversion.ddim_inversion import DDIMInversion
from attention_edit.inversion.generated import GeneratedSource
from other_texts import read
from tiny_joint import EXACT, joint_latent, joint_model, joint_prompt, joint_run

KINDS = pytest.mark.parametrize("kind", list(tiny_joint.CONFIGS))
SOME = pytest.mark.parametrize("kind", ["Flux", "Flux2", "SD3", "ZImage"])
"""With their own ways: nothing of it, texts filled up ahead, no positions, positions behind the text."""
CAT, DOG, BLACK = (read("Chroma", text) for text in ("a cat on a mat", "a dog on a mat", "a very black cat on a mat"))
LONG = read("Chroma", "a cat on a mat" + " and a big dog" * 8)
ALWAYS = (0.0, 1.0)


def conditioning(seed, kind, prompt):
    return joint_prompt(seed, kind, tokens=prompt.length)


def inverted(model, kind, prompt=CAT, batch=1):
    with torch.inference_mode():
        latent = {"samples": joint_latent(1, kind, batch)}
        return DDIMInversion(4, flow_iterations=1)(model, latent, conditioning(5, kind, prompt)).inversion


def run(model, inversion, control, kind, prompt=None, **options):
    target = conditioning(2, kind, getattr(control, "target", prompt))
    return joint_run(model, inversion, control, kind=kind, positive=target, **options)


def p2p(target=DOG, cross=ALWAYS, self_window=(0.0, 0.0), **options):
    return P2P(CAT, target, cross=cross, self_window=self_window, layers="all", **options)


@KINDS
@pytest.mark.parametrize("self_window", [ALWAYS, (0.0, 0.0)])
def test_identical_prompts_give_the_source(kind, self_window):
    model = joint_model(kind)
    with torch.inference_mode():
        given = {"samples": joint_latent(1, kind)}
        inversion = GeneratedSource(4, seed=7)(model, given, conditioning(5, kind, CAT)).inversion
    image = model.get_model_object("latent_format").process_out(inversion.latents[0])
    control = p2p(CAT, self_window=self_window)
    assert edits.difference(run(model, inversion, control, kind), image) > 100 * EXACT
    same = joint_run(model, inversion, control, kind=kind, positive=inversion.conditioning)
    assert edits.difference(same, image) < EXACT


@KINDS
def test_an_empty_window_is_the_stock_run_to_the_bit(kind):
    model = joint_model(kind)
    inversion = inverted(model, kind)
    stock = joint_run(model, inversion, kind=kind, cfg=3.0, positive=conditioning(2, kind, DOG))
    assert torch.equal(run(model, inversion, p2p(cross=(0.0, 0.0)), kind, cfg=3.0), stock)
    assert torch.equal(
        run(model, inversion, p2p(BLACK, cross=(0.9, 0.9)), kind), run_stock(model, inversion, kind, BLACK)
    )
    assert not torch.equal(run(model, inversion, p2p(), kind, cfg=3.0), stock)


def run_stock(model, inversion, kind, prompt):
    return joint_run(model, inversion, kind=kind, positive=conditioning(2, kind, prompt))


@SOME
def test_packed_is_apart(kind):
    model = joint_model(kind)
    inversion = inverted(model, kind)
    control = p2p(BLACK, self_window=(0.0, 0.5), weights=[("black", 2.0)])
    apart, packed = (run(model, inversion, control, kind, cfg=3.0, packed=on) for on in (False, True))
    assert edits.difference(packed, apart) < EXACT


@SOME
def test_a_batch_is_its_images_apart(kind):
    model = joint_model(kind)
    pair, control = inverted(model, kind, batch=2), p2p(BLACK, self_window=(0.0, 0.5))
    both = run(model, pair, control, kind, cfg=3.0, batch=2)
    for i in range(2):
        alone = run(model, replace(pair, latents=pair.latents[:, i : i + 1]), control, kind, cfg=3.0)
        assert edits.difference(both[i : i + 1], alone) < EXACT


def shares(q, k):
    return (q.double() @ k.double().transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)


def heads_of(x, heads):
    return (x if x.ndim == 4 else x.unflatten(-1, (heads, -1))).transpose(1, 2)


def first_block(monkeypatch, model, inversion, control, kind):
    """Queries, keys and values of source and target (1, H, n, d), and the target's attention, of the first step."""
    seen, plain = {}, JointSite.__call__

    def spy(self, func, q, k, v, heads, *args, **kwargs):
        out = plain(self, func, q, k, v, heads, *args, **kwargs)
        options, phase = kwargs["transformer_options"], self.run.phase
        first = options.get("block_index") == 0 and options.get("block_type", "double") == "double"
        if first and phase is not Phase.IDLE and phase not in seen:
            flat = not kwargs.get("skip_reshape")
            seen[phase] = tuple(heads_of(x, heads) if flat else x for x in (q, k, v)), out
        return out

    monkeypatch.setattr(JointSite, "__call__", spy)
    run(model, inversion, control, kind)
    (source, _), (target, out) = seen[Phase.CAPTURE], seen[Phase.EDIT]
    return source, target, out


@SOME
@pytest.mark.parametrize(
    "control",
    [
        p2p(),
        p2p(BLACK, weights=[("black", 3.0), ("cat", -1.0)]),
        p2p(LONG),
        p2p(BLACK, self_window=ALWAYS),
        p2p(windows=[("dog", 0.0, 0.0)]),
    ],
    ids=["swap", "weights", "longer", "self too", "window of a word"],
)
def test_the_output_is_that_of_the_rewritten_columns(kind, control, monkeypatch):
    """Against both joint softmaxes written out: words' columns rewritten, the image's the target's or the source's."""
    model = joint_model(kind)
    source, target, out = first_block(monkeypatch, model, inverted(model, kind), control, kind)
    patch = 1 if kind == "Flux2" else 2
    tokens = (joint_latent(1, kind).shape[-1] // patch) ** 2
    first = [side[0].shape[2] - tokens for side in (source, target)]
    places = [
        slice(n - p.length, n) if kind == "Flux2" else slice(p.length)
        for n, p in zip(first, (control.source, control.target), strict=True)
    ]
    before, after = (shares(side[0][:, :, n:], side[1]) for side, n in zip((source, target), first, strict=True))
    mapping, expected = control.mapping.gated(control.gate(0, 4)), after.clone()
    words = before[..., places[0]] @ mapping.transfer.double() + after[..., places[1]] * mapping.keep.double()
    values = target[2].double()
    if control.self_window[1]:
        expected[..., first[1] :] = before[..., first[0] :]
        filled = before.clone()  # what fills the source's text up, with its values
        filled[..., places[0]] = filled[..., first[0] :] = 0
        expected[..., : first[1]] = 0
        beside = filled @ source[2].double()
    else:
        beside = 0
    expected[..., places[1]] = words
    wanted = (expected @ values + beside).transpose(1, 2).flatten(2)
    assert torch.allclose(out[:, first[1] :].double(), wanted, atol=1e-5)


def test_weights_of_one_change_nothing():
    model = joint_model("Flux")
    inversion = inverted(model, "Flux")
    plain, one, four = (
        run(model, inversion, p2p(BLACK, weights=weights), "Flux")
        for weights in ([], [("black", 1.0)], [("black", 4.0)])
    )
    assert torch.equal(one, plain) and not torch.equal(four, plain)


@SOME
def test_outside_of_the_words_window_the_self_maps_are_fpes(kind):
    model = joint_model(kind)
    inversion = inverted(model, kind)
    out = run(model, inversion, p2p(cross=(0.0, 0.0), self_window=ALWAYS), kind, cfg=3.0)
    assert torch.equal(out, run(model, inversion, FPE(layers="all", end=1.0), kind, DOG, cfg=3.0))


def test_what_goes_together():
    """The words' share is Prompt-to-Prompt's, the other one another method's; CPAM says what is read of both."""
    model = joint_model("SD3")
    inversion = inverted(model, "SD3")
    left = torch.zeros(1, 64, 64, dtype=torch.bool)
    left[..., :32] = True
    for other in (FPE(layers="all", end=1.0), MasaCtrl(0.0, 0)):
        target = conditioning(2, "SD3", DOG)
        both = joint_run(model, inversion, p2p(), other, kind="SD3", positive=target)
        assert edits.difference(both, joint_run(model, inversion, other, kind="SD3", positive=target)) > 10 * EXACT
    with pytest.raises(ValueError, match="FPE and Prompt-to-Prompt do not go together"):
        install(install(model, FPE(layers="all"), inversion), p2p(self_window=ALWAYS), inversion)
    with pytest.raises(ValueError, match="CPAM and Prompt-to-Prompt do not go together"):
        install(install(model, CPAM(edits.masks(left, left)), inversion), p2p(), inversion)
    install(install(model, CPAM(edits.masks(left, left), end=0.5), inversion), p2p(cross=(0.5, 0.8)), inversion)


@SOME
def test_prompts_of_other_conditionings_are_refused(kind):
    model = joint_model(kind)
    inversion = inverted(model, kind)
    with pytest.raises(ValueError, match=rf"sampler's positive conditioning has 12 text.*target.*{BLACK.length}"):
        joint_run(model, inversion, p2p(BLACK), kind=kind)
    with pytest.raises(
        ValueError, match=rf"inversion's source conditioning has {CAT.length} text.*source.*{LONG.length}"
    ):
        run(model, inversion, P2P(LONG, DOG), kind)


@pytest.mark.parametrize("kind", ["Flux", "SD3"])
def test_bfloat16(kind):
    model = joint_model(kind, dtype=torch.bfloat16)
    out = run(model, inverted(model, kind), p2p(BLACK, self_window=(0.0, 0.5)), kind, cfg=3.0)
    assert torch.isfinite(out).all()


def test_evaluations_and_nothing_left(caplog):
    """The source's row until the longest window ends; nothing stays on the model."""
    model = joint_model("SD3")
    inversion = inverted(model, "SD3")
    before = run_stock(model, inversion, "SD3", DOG)
    with caplog.at_level(logging.INFO):
        run(model, inversion, p2p(cross=(0.0, 0.5)), "SD3", cfg=3.0)
    assert "plans 10 UNet evaluations (2 source, 8 target): Prompt-to-Prompt" in caplog.text
    assert "Attention Edit: 10 UNet evaluations" in caplog.text
    options = model.model_options["transformer_options"]
    assert "optimized_attention_override" not in options and not options.get("patches_replace")
    assert torch.equal(run_stock(model, inversion, "SD3", DOG), before)
