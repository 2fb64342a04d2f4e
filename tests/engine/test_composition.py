"""The engine beside other packs' patches, LoRAs, ControlNets and conditionings: it works, or says what does not."""

from __future__ import annotations

import logging

import comfy.controlnet
import comfy.model_management
import comfy.samplers
import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine import install as engine
from attention_edit.attention.engine.site import SiteHook
from attention_edit.attention.methods.cpam import CPAM
from attention_edit.host.families import family_of
from comfy.patcher_extension import WrappersMP


def test_the_source_sees_no_control_and_other_patches_stay(model, inversion):
    """A patch of another pack that was there before is still called, and its result is what we build on."""
    calls = []

    def other(q, k, v, eo):
        calls.append(eo["block"])
        return torch.zeros_like(q)

    patched = model.clone()
    patched.set_model_attn1_replace(other, "output", 3)
    alone = edits.run(patched, inversion)
    calls.clear()
    after = edits.run(patched, inversion, CPAM(edits.masks(target=edits.ALL), normal_share=0.0, localized=False))
    assert calls and edits.difference(after, alone) < 1e-5
    stacked = edits.run(patched, inversion, edits.Idle())
    assert torch.equal(stacked, alone)


def test_a_patch_that_takes_our_place_is_named(model, inversion):
    class Greedy:
        def __call__(self, q, k, v, eo):
            return q

    patched = engine.install(model, edits.SourceLook(), inversion)
    for layer in family_of(model).layers:
        patched.set_model_attn1_replace(Greedy(), *layer.block, layer.depth)
    with pytest.raises(RuntimeError, match=r"Greedy.*did nothing"):
        tiny.sample(patched, tiny.prompt(2), tiny.prompt(3), tiny.latent(4), torch.tensor(inversion.schedule))


def test_a_patch_that_takes_one_of_our_places_is_warned_of(model, inversion, caplog):
    patched = engine.install(model, edits.SourceLook(), inversion)
    patched.set_model_attn1_replace(lambda q, k, v, eo: q, "output", 3, 0)
    with caplog.at_level(logging.WARNING):
        tiny.sample(patched, tiny.prompt(2), tiny.prompt(3), tiny.latent(4), torch.tensor(inversion.schedule))
    assert "1 of 16 attention layers" in caplog.text


def test_what_another_pack_adds_to_a_clone_stays_there(model, inversion):
    """IPAdapter's nodes clone the model and add to the patches that they find."""
    patched = engine.pin(engine.install(model, edits.SourceLook(), inversion), inversion, tuple(inversion.schedule))

    def hooks(of):
        return of.model_options["transformer_options"]["patches_replace"]["attn1"].values()

    clone = patched.clone()
    for hook in hooks(clone):
        hook.add(lambda out, *_, **__: out)
    assert all(len(hook.added) == 1 for hook in hooks(clone))
    assert not any(hook.added for hook in hooks(patched))
    assert all(len(hook.added) == 1 for hook in hooks(clone.clone()))


def test_ipadapters_add_is_served(model, inversion):
    patched = engine.install(model, CPAM(edits.masks(), normal_share=0.0), inversion)
    hook = patched.model_options["transformer_options"]["patches_replace"]["attn2"][("output", 3, 0)]
    assert isinstance(hook, SiteHook)
    shapes = []

    def ip(out, q, k, v, eo, weight=1.0, **_):
        shapes.append(k.shape[1])
        return out * weight

    hook.add(ip, weight=0.0, sigma_start=1000.0, sigma_end=0.0)
    tiny.sample(patched, tiny.prompt(2), tiny.prompt(3), tiny.latent(4), torch.tensor(inversion.schedule))
    assert shapes and set(shapes) == {77}


def test_area_conditionings_are_refused(model, inversion):
    patched = engine.install(model, edits.SourceLook(), inversion)
    positive = tiny.prompt(2)
    positive[0][1]["area"] = (8, 8, 0, 0)
    with pytest.raises(ValueError, match="whole image"):
        tiny.sample(patched, positive, tiny.prompt(3), tiny.latent(4), torch.tensor(inversion.schedule))


def test_windows_of_another_pack_are_not_called_an_area(model, inversion):
    """Sliding-window guidance runs the model on parts of the latent; the person has no area anywhere."""

    def tiled(executor, x, t, *args, **kwargs):
        half = x.shape[-1] // 2
        return torch.cat([executor(x[..., :half], t, *args, **kwargs), executor(x[..., half:], t, *args, **kwargs)], -1)

    patched = engine.install(model, edits.SourceLook(), inversion)
    patched.wrappers[WrappersMP.APPLY_MODEL] = {
        "tiles": [tiled],
        **patched.wrappers[WrappersMP.APPLY_MODEL],
    }
    with pytest.raises(
        ValueError, match=r"^Remove the node that runs the model on windows.*8x16 of the latent's 16x16"
    ):
        tiny.sample(patched, tiny.prompt(2), tiny.prompt(3), tiny.latent(4), torch.tensor(inversion.schedule))


@pytest.mark.parametrize("own", [{}, {"cond_or_uncond": [0]}, {"uuids": [], "cond_or_uncond": []}])
def test_a_call_with_another_packs_own_options_is_none_of_ours(model, inversion, own):
    """It is let through as it would be without the edit, which is the same as if nobody had called."""
    seen = []

    def asks(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        theirs = {k: v for k, v in transformer_options.items() if k not in ("uuids", "cond_or_uncond")} | own
        seen.append(executor(x, t, c_concat, c_crossattn, control, theirs, **kwargs))
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    patched = engine.install(model, CPAM(edits.masks(), normal_share=0.0), inversion)
    run = lambda one: tiny.sample(  # noqa: E731
        one, tiny.prompt(2), tiny.prompt(3), tiny.latent(4), torch.tensor(inversion.schedule)
    )
    plain = run(patched)
    other = patched.clone()
    other.wrappers[WrappersMP.APPLY_MODEL] = {"other": [asks], **other.wrappers[WrappersMP.APPLY_MODEL]}
    assert torch.equal(run(other), plain)
    assert seen and all(torch.isfinite(out).all() for out in seen)


def test_merged_tokens_are_refused(model, inversion):
    patched = model.clone()
    patched.set_model_attn1_patch(lambda n, c, v, eo: (n[:, ::2], c[:, ::2], v[:, ::2]))
    patched.set_model_attn1_output_patch(lambda n, eo: n.repeat_interleave(2, dim=1))
    patched = engine.install(patched, edits.SourceLook(), inversion)
    with pytest.raises(ValueError, match="Token Merging"):
        tiny.sample(patched, tiny.prompt(2), tiny.prompt(3), tiny.latent(4), torch.tensor(inversion.schedule))


def test_a_noise_mask_is_refused_on_a_pinned_model(model, inversion):
    patched = engine.pin(model, inversion, tuple(inversion.schedule))
    with pytest.raises(ValueError, match="Exact Background"):
        tiny.sample(
            patched,
            tiny.prompt(2),
            tiny.prompt(3),
            edits.run_start(),
            torch.tensor([1.0, 0.0]),
            denoise_mask=torch.ones(1, 1, tiny.SIZE, tiny.SIZE),
        )


def test_the_hosts_attention_override_is_honoured(model, inversion):
    calls = []

    def override(func, *args, **kwargs):
        calls.append(1)
        return func(*args, **kwargs)

    patched = model.clone()
    patched.model_options["transformer_options"]["optimized_attention_override"] = override
    edits.run(patched, inversion, CPAM(edits.masks(target=edits.ALL), normal_share=0.0))
    plain = len(calls)
    # Per step: 32 attentions of the source's call and at least 32 of the target's.
    assert plain >= 64 * (len(inversion.sigmas) - 1)


def test_a_lora_like_weight_patch_acts(model, inversion):
    patched = model.clone()
    name = "diffusion_model.output_blocks.3.1.transformer_blocks.0.attn1.to_v.weight"
    weight = model.model.diffusion_model.output_blocks[3][1].transformer_blocks[0].attn1.to_v.weight
    patched.add_patches({name: (torch.randn(weight.shape),)}, 1.0)
    plain, with_lora = (edits.run(m, inversion, CPAM(edits.masks())) for m in (model, patched))
    assert edits.difference(with_lora, plain) > 1e-3


def test_wrappers_of_other_packs_run_with_ours(model, inversion):
    seen = []

    def wrapper(executor, *args, **kwargs):
        seen.append(args[0].shape[0])
        return executor(*args, **kwargs)

    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "another pack", wrapper)
    edits.run(patched, inversion, edits.SourceLook())
    assert seen == [1, 2] * (len(inversion.sigmas) - 1)


def test_control_reaches_the_edit_only(model, inversion):
    """A ControlNet on the prompt is spread by the host to every conditioning; the source stays without."""

    class Hint(comfy.controlnet.ControlBase):
        def __init__(self):
            super().__init__()
            self.rows = []

        def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
            self.rows.append(x_noisy.shape[0])
            return {"input": [], "middle": [], "output": []}

    hint = Hint()
    positive = tiny.prompt(2)
    positive[0][1] |= {"control": hint, "control_apply_to_uncond": True}
    for packed in (False, True):
        hint.rows.clear()
        patched = engine.install(model, edits.SourceLook(), inversion, packed)
        tiny.sample(patched, positive, tiny.prompt(3), tiny.latent(4), torch.tensor(inversion.schedule))
        assert hint.rows == [2] * (len(inversion.sigmas) - 1)
