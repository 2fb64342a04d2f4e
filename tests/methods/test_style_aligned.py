"""StyleAligned: attention over both images' keys, with the source's statistics on the target's queries and keys."""

from __future__ import annotations

from dataclasses import replace

import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine import install as engine
from attention_edit.attention.methods.fpe import FPE
from attention_edit.attention.methods.masactrl import MasaCtrl
from attention_edit.attention.methods.style_aligned import StyleAligned, adain
from attention_edit.host.families import SD1
from calls import HEADS, make_call, random
from sources import FAMILIES, generated


def moved(x, style):
    """AdaIN written out, a channel at a time; the released code's variance is of n - 1."""
    out = torch.empty_like(x)
    for row in range(x.shape[0]):
        for channel in range(x.shape[2]):
            a, b = x[row, :, channel], style[row, :, channel]
            spread = [(((c - c.sum() / len(c)) ** 2).sum() / (len(c) - 1) + 1e-5) ** 0.5 for c in (a, b)]
            out[row, :, channel] = (a - a.sum() / len(a)) / spread[0] * spread[1] + b.sum() / len(b)
    return out


def expected(call, strength, with_adain):
    """Unnormalised weights of both images, those of the source times strength, a head and a row at a time."""
    source = call.source
    q, k = (moved(call.q, source.q), moved(call.k, source.k)) if with_adain else (call.q, call.k)
    out, width = torch.empty_like(q), q.shape[2] // HEADS
    for row in range(len(q)):
        for head in range(HEADS):
            at = slice(head * width, (head + 1) * width)
            own, shared = ((q[row, :, at] @ keys[row, :, at].T / width**0.5).exp() for keys in (k, source.k))
            total = own.sum(1, keepdim=True) + strength * shared.sum(1, keepdim=True)
            out[row, :, at] = (own @ call.v[row, :, at] + strength * shared @ source.v[row, :, at]) / total
    return out


def masked(q, k, v, mask=None):
    """The host's attention, with a mask to add, in float64."""
    q, k, v = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v))
    mask = None if mask is None else mask[:, None]
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("strength", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("with_adain", [False, True])
def test_attends_to_both_images(strength, with_adain):
    control = StyleAligned(strength, adain=with_adain)
    call = replace(make_call(control, batch=2), attend=masked)
    assert edits.difference(control.attend(call), expected(call, strength, with_adain)) < 1e-12


def test_one_token_alone_becomes_the_sources():
    """The deepest layer of a picture of 64 pixels has one: it has no deviation, and no NaN either."""
    x, style = (torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert torch.equal(adain(x, style), style)


def test_adain_gives_the_sources_statistics():
    x, style = 3 * random(2, 64, 4, seed=1) + 5, random(2, 64, 4, seed=2) - 1
    out = adain(x, style)
    assert torch.allclose(out.mean(1), style.mean(1))
    assert torch.allclose(out.std(1), style.std(1), rtol=1e-4), "up to the epsilon of the variance"
    assert torch.allclose(adain(x, x), x)


def test_the_published_settings():
    (act,) = StyleAligned().acts_on(SD1)
    assert act.layers == SD1.layers and act.during.of(50) == range(50) and act.own_half
    assert (act.reads, StyleAligned(adain=False).acts_on(SD1)[0].reads) == ("qkv", "kv")


@pytest.mark.parametrize(
    "control",
    [StyleAligned(end=0.0), StyleAligned(start=1.0), StyleAligned(start=0.5, end=0.5), StyleAligned(strength=0.0)],
)
def test_an_empty_window_and_no_strength_are_the_stock_sampler_bit_for_bit(model, inversion, control):
    assert torch.equal(edits.run(model, inversion, control), edits.run(model, inversion))


@FAMILIES
def test_the_same_prompt_and_noise_give_the_source(kind, v):
    """Queries, keys and values are then the source's, AdaIN changes nothing, and keys seen twice weigh the same."""
    model = tiny.tiny_model(kind, v)
    inversion, image = generated(model, kind, steps=2)
    assert edits.difference(edits.run(model, inversion, StyleAligned(2.0), kind=kind, positive=5), image) < 1e-4


@FAMILIES
def test_edits_packed_and_separate_alike(kind, v):
    model = tiny.tiny_model(kind, v)
    inversion, _ = generated(model, kind, steps=2)
    control = StyleAligned(2.0)
    separate, packed = (edits.run(model, inversion, control, kind=kind, packed=p) for p in (False, True))
    assert edits.difference(packed, separate) < 1e-4
    assert not torch.equal(separate, edits.run(model, inversion, kind=kind))


@pytest.mark.parametrize("packed", [False, True])
def test_a_batch_equals_singles(model, packed):
    inversion = edits.invert(model, batch=2)
    both = edits.run(model, inversion, StyleAligned(2.0), batch=2, packed=packed)
    for i in range(2):
        single = replace(inversion, latents=inversion.latents[:, i : i + 1])
        alone = edits.run(model, single, StyleAligned(2.0), packed=packed)
        assert edits.difference(both[i : i + 1], alone) < 1e-4


def test_each_half_reads_its_own_half_of_the_source(model, inversion):
    """Rows of a step: two of the target and two of the source; one if the negative prompt is the source's."""
    same = edits.recorded(model, prompt_seed=3)
    assert edits.planned(model, edits.recorded(model), StyleAligned()) == (98, 98)
    assert edits.planned(model, same, StyleAligned()) == (49, 98)
    assert edits.planned(model, same, StyleAligned(start=0.2, end=0.4)) == (10, 98)
    seen = {}

    class Listening(StyleAligned):
        def attend(self, call):
            chunks = zip(call.conditional, call.from_source.k.chunk(len(call.conditional)), strict=True)
            seen.update({conditional: k.clone() for conditional, k in chunks})
            return super().attend(call)

    edits.run(model, inversion, Listening())
    assert edits.difference(seen[True], seen[False]) > 1e-4


@pytest.mark.parametrize(
    "changed",
    [{"strength": 2.0}, {"adain": False}, {"start": 0.5}, {"end": 0.5}, {"layers": "3-13"}],
    ids=lambda changed: next(iter(changed)),
)
def test_every_setting_has_an_effect(model, inversion, changed):
    plain, other = (edits.run(model, inversion, control) for control in (StyleAligned(), StyleAligned(**changed)))
    assert edits.difference(other, plain) > 1e-3


@pytest.mark.parametrize("other", [FPE(), MasaCtrl(), StyleAligned()], ids=lambda other: other.name)
def test_two_that_replace_the_same_attention_are_refused(model, inversion, other):
    patched = engine.install(model, other, inversion)
    with pytest.raises(ValueError, match=rf"{other.name} and StyleAligned do not go together"):
        engine.install(patched, StyleAligned(), inversion)
    apart = StyleAligned(start=0.5) if other.name == "StyleAligned" else StyleAligned(layers="0-1")
    first = StyleAligned(end=0.5) if other.name == "StyleAligned" else other
    assert len(engine.plan_of(engine.install(engine.install(model, first, inversion), apart, inversion)).controls) == 2
