"""Transformers: controls on joint attention, on tiny random models of the host's classes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import edits
import pytest
import tiny_joint
import torch
from attention_edit.attention.engine.acts import Act, Site, Window
from attention_edit.attention.engine.control import Control
from attention_edit.attention.engine.install import install, pin
from attention_edit.attention.methods.background import ExactBackground
from attention_edit.attention.methods.cpam import CPAM
from attention_edit.attention.methods.fpe import FPE
from attention_edit.attention.methods.masactrl import MasaCtrl
from attention_edit.attention.methods.pnp import PnP
from attention_edit.attention.methods.style_aligned import StyleAligned
from tiny_joint import EXACT, LEFT, joint_drawn, joint_inversion, joint_model, joint_prompt, joint_run, joint_sample

KINDS = pytest.mark.parametrize("kind", list(tiny_joint.CONFIGS))
PIXELS = 64
NONE = torch.zeros(1, PIXELS, PIXELS, dtype=torch.bool)


def cpam(target, retain=False, **settings):
    settings = {"normal_share": 0.0, "retain_layer": 0} | settings
    return CPAM(edits.masks(target, target, retain), **settings)


CONTROLS = pytest.mark.parametrize(
    "control",
    [
        FPE(layers="all", end=1.0),
        FPE(layers="all", end=1.0, both_halves=True),
        MasaCtrl(start=0.0, first_layer=0),
        MasaCtrl(start=0.0, first_layer=0, masks=(LEFT, ~LEFT)),
        MasaCtrl(start=0.0, first_layer=0, union=True),
        cpam(LEFT),
        cpam(LEFT, retain=True, retain_start=0.0),
        cpam(LEFT, normal_share=0.5),
        cpam(LEFT, localized=False),
        ExactBackground(LEFT),
    ],
    ids=["FPE", "FPE both", "MasaCtrl", "MasaCtrl masks", "union", "CPAM", "retain", "normal", "not localized", "EB"],
)


@KINDS
def test_the_source_prompt_draws_the_source(kind):
    model = joint_model(kind)
    inversion, image = joint_drawn(model, kind)
    for control in (FPE("all", 1.0), MasaCtrl(0.0, 0), cpam(NONE)):
        out = joint_run(model, inversion, control, kind=kind, positive=inversion.conditioning)
        assert edits.difference(out, image) < EXACT, control.name


@KINDS
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_nothing_to_change_is_the_source_under_any_prompt(kind, cfg):
    """CPAM's background reads the source's text with the source's image; pooled vector and guidance are its own."""
    model = joint_model(kind)
    inversion, image = joint_drawn(model, kind)
    prompt = joint_prompt(2, kind, tokens=40 if kind == "ZImage" else 9)
    options = inversion.conditioning[0][1]
    prompt[0][1].update(options)
    negative = joint_prompt(3, kind)
    negative[0][1].update(options)
    edited = pin(install(model, cpam(NONE, normal_share=0.0), inversion), inversion, tuple(inversion.schedule))
    start = torch.zeros(1, *inversion.latents.shape[2:])
    out = joint_sample(edited, prompt, negative, start, start, torch.tensor([1.0, 0.0]), cfg)
    assert edits.difference(out, image) < EXACT
    free = joint_run(model, inversion, kind=kind, positive=prompt)
    assert edits.difference(free, image) > 100 * EXACT


@KINDS
def test_everything_to_change_is_the_stock_run(kind):
    model = joint_model(kind)
    inversion = joint_inversion(model, kind)
    stock = joint_run(model, inversion, kind=kind, cfg=3.0)
    assert edits.difference(joint_run(model, inversion, cpam(~NONE), kind=kind, cfg=3.0), stock) < EXACT


@KINDS
def test_exact_background_is_the_images_own(kind):
    model = joint_model(kind)
    inversion = joint_inversion(model, kind)
    image = model.get_model_object("latent_format").process_out(inversion.latents[0])
    half = image.shape[-1] // 2
    left = torch.zeros(1, 8 * image.shape[-2], 8 * image.shape[-1], dtype=torch.bool)
    left[..., : left.shape[-1] // 2] = True
    out = joint_run(model, inversion, ExactBackground(left), kind=kind)
    assert torch.equal(out[..., half:], image[..., half:])
    assert edits.difference(out[..., :half], image[..., :half]) > 100 * EXACT


@KINDS
def test_an_empty_window_is_the_stock_run_to_the_bit(kind):
    """The engine neither computes attention nor touches the latent; so does a pin alone."""
    model = joint_model(kind)
    inversion = joint_inversion(model, kind)
    sigmas = torch.tensor(inversion.schedule)
    zeros = torch.zeros(1, *inversion.latents.shape[2:])
    stock = joint_sample(model, joint_prompt(2, kind), joint_prompt(3, kind), zeros, inversion.latents[-1], sigmas, 3.0)
    for control in (FPE(layers="all", end=0.0), MasaCtrl(1.0, 0), JointLook(0.0)):
        assert torch.equal(joint_run(model, inversion, control, kind=kind, cfg=3.0), stock)
    assert torch.equal(joint_run(model, inversion, kind=kind, cfg=3.0), stock)


@dataclass(frozen=True, eq=False)
class JointLook(Control):
    """Image queries read the source's text and image: all of the source's keys and values."""

    end: float = 1.0
    name = "joint look"
    on_joint = True

    def acts_on(self, family):
        return (Act(Site.SELF, family.layers, during=Window(0.0, self.end), do=self.look, reads="kv"),)

    def look(self, call):
        return call.attend(call.q, call.from_source.k, call.from_source.v, text="source")


@pytest.mark.parametrize("kind", ["Flux", "SD3"])
@CONTROLS
def test_packed_is_apart(kind, control):
    model = joint_model(kind)
    inversion = joint_inversion(model, kind)
    apart, packed = (joint_run(model, inversion, control, kind=kind, cfg=3.0, packed=p) for p in (False, True))
    assert edits.difference(packed, apart) < EXACT
    assert edits.difference(apart, joint_run(model, inversion, kind=kind, cfg=3.0)) > 10 * EXACT


@pytest.mark.parametrize("kind", ["Flux", "SD3"])
@CONTROLS
def test_a_batch_is_its_images_apart(kind, control):
    model = joint_model(kind)
    pair = joint_inversion(model, kind, batch=2)
    both = joint_run(model, pair, control, kind=kind, cfg=3.0, batch=2)
    for i in range(2):
        one = replace(pair, latents=pair.latents[:, i : i + 1])
        alone = joint_run(model, one, control, kind=kind, cfg=3.0)
        assert edits.difference(both[i : i + 1], alone) < EXACT


@KINDS
def test_image_queries_read_what_the_control_names(kind):
    """Against attention written out: the source's keys and values, text and image, for queries of the image."""
    model = joint_model(kind)
    inversion = joint_inversion(model, kind)
    source, target = [], []

    def watch(func, q, k, v, heads, *args, **kwargs):
        if not kwargs.get("skip_reshape"):
            q, k, v = ((x if x.ndim == 4 else x.unflatten(-1, (heads, -1))).transpose(1, 2) for x in (q, k, v))
        out = func(q, k, v, heads, *args, **{**kwargs, "skip_reshape": True})
        options = kwargs["transformer_options"]
        refiner = kind in ("ZImage", "Lumina2") and "block_index" not in options
        if float(options["sigmas"][0]) == inversion.schedule[0] and not refiner:
            (source if not source else target).append((q, k, v, out))
        return out

    watched = model.clone()
    watched.model_options["transformer_options"]["optimized_attention_override"] = watch
    joint_run(watched, inversion, JointLook(), kind=kind)
    _, k, v, _ = source[0]
    image = inversion.latents.shape[-1] ** 2 // (1 if kind == "Flux2" else 4)
    looked = next(call for call in target if call[1].shape == k.shape and torch.equal(call[1], k))
    q, _, _, out = looked
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    assert q.shape[2] == image
    assert torch.allclose((weights @ v).transpose(1, 2).flatten(2), out, atol=1e-5)


@KINDS
def test_nothing_is_left_on_the_model(kind):
    model = joint_model(kind)
    inversion = joint_inversion(model, kind)
    before = joint_run(model, inversion, kind=kind)
    edited = install(model, FPE(layers="all", end=1.0), inversion)
    joint_run(edited, inversion, kind=kind)
    assert "optimized_attention_override" not in edited.model_options["transformer_options"]
    assert not edited.model_options["transformer_options"].get("patches_replace")
    assert torch.equal(joint_run(model, inversion, kind=kind), before)


@pytest.mark.parametrize("kind", ["Flux", "SD3"])
def test_bfloat16(kind):
    model = joint_model(kind, dtype=torch.bfloat16)
    inversion = joint_inversion(model, kind)
    out = joint_run(model, inversion, cpam(LEFT), kind=kind, cfg=3.0)
    assert torch.isfinite(out).all()


def test_what_does_not_work_yet_is_refused_by_name():
    model = joint_model("Flux")
    inversion = joint_inversion(model)
    for control in (PnP(), StyleAligned()):
        with pytest.raises(ValueError, match=rf"{control.name} does not work on transformers such as Flux\.1"):
            install(model, control, inversion)
    with pytest.raises(ValueError, match=r"MasaCtrl's first layer is not known for SD3"):
        install(joint_model("SD3"), MasaCtrl(), joint_inversion(joint_model("SD3"), "SD3"))


def test_a_mask_of_another_node_is_refused():
    model = joint_model("Flux")
    inversion = joint_inversion(model)

    def masked(q, k, v, pe=None, attn_mask=None, extra_options=None):
        return {"q": q, "k": k, "v": v, "pe": pe, "attn_mask": torch.zeros(q.shape[2], k.shape[2])}

    other = model.clone()
    other.set_model_attn1_patch(masked)
    with pytest.raises(ValueError, match="masks attention"):
        joint_run(other, inversion, FPE(layers="all", end=1.0))
