"""Gradients through weights as the host holds them: in half precision, fetched anew, loaded once."""

from __future__ import annotations

import comfy.controlnet
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sampler_helpers
import comfy.samplers
import pytest
import tiny
import torch
from attention_edit.host import gradients
from attention_edit.host.gradients import differentiable, for_gradients, gradient, plain
from differentiated import as_loaded, plain_run, run


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights(dtype):
    """Gradients of a half-precision model are those of the same weights in float32."""
    model = as_loaded(dtype=dtype)
    reference = tiny.tiny_model()
    with torch.no_grad():
        halves = dict(model.model.diffusion_model.named_parameters())
        for name, weight in reference.model.diffusion_model.named_parameters():
            weight.copy_(halves[name].float())
    before = plain_run(model)
    for a, b in zip(run(for_gradients(model, True), True), run(reference), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))
    assert torch.equal(plain_run(model), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_partially_loaded_weights(dtype, monkeypatch):
    """Low VRAM: half of the layers fetch their weight, and a LoRA on it, anew in every call; the gradient is the same.

    The host decides so by a GPU's free memory; here it is told to, and fetches from the same memory.
    """
    seen = []

    def patched():
        model = as_loaded(dtype=dtype)
        for name, weight in model.model.diffusion_model.named_parameters():
            if name.endswith("to_k.weight"):
                rng = torch.Generator().manual_seed(0)
                change = torch.randn(weight.shape, generator=rng) * weight.float().std()
                model.add_patches({f"diffusion_model.{name}": (change.to(dtype),)}, 0.5)
        return model

    def load_half(self, extra_memory, force_patch_weights=False):
        return self.model.partially_load(self.device, self.model.model_size() // 2, force_patch_weights)

    whole = run(for_gradients(patched(), True), True)
    before = run(as_loaded(dtype=dtype))
    monkeypatch.setattr(comfy.model_management.LoadedModel, "model_use_more_vram", load_half)
    model = patched()
    half = run(
        for_gradients(model, True), True, during=lambda m: seen.append((m.model_lowvram, m.lowvram_patch_counter))
    )
    assert seen[0][0] and seen[0][1] > 0
    tolerance = 2e-2 if dtype is torch.bfloat16 else 2e-3  # a patched weight is rounded where it is loaded
    for a, b in zip(half, whole, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=tolerance * float(b.abs().max()))
    assert not torch.allclose(half[1], before[1], rtol=0.1, atol=0)


def fetched(model, monkeypatch, dynamic):
    """A model whose layers' weights wait on another device, and come through one buffer that each layer overwrites.

    On one CPU the other device is the same one by another name. The host's dynamic loading fetches likewise, and calls
    a layer's functions on what it fetched.
    """
    model.load_device = torch.device("cpu", 0)
    buffer = torch.zeros(1 << 20)
    asked = []

    def fetch(layer, given=None, dtype=None, device=None, bias_dtype=None, offloadable=False, **_):
        asked.append(layer)
        at, parts = 0, []
        for name in ("weight", "bias"):
            weight = getattr(layer, name)
            if weight is not None:
                view = buffer[at : at + weight.numel()].view(weight.shape)
                with torch.no_grad():
                    view.copy_(weight)
                at += weight.numel()
                for function in getattr(layer, f"{name}_function"):
                    view = function(view)
                weight = view
            parts.append(weight)
        return (*parts, None) if offloadable else tuple(parts)

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", fetch)
    monkeypatch.setattr(model, "is_dynamic", lambda: dynamic)
    for module in model.model.diffusion_model.modules():
        if hasattr(module, "comfy_cast_weights"):
            module.comfy_cast_weights = True
    model.model.current_patcher = model
    return asked


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_weights_that_are_fetched_in_the_precision_that_is_computed_in(dynamic, checkpointing, monkeypatch):
    """A fp32 model under dynamic loading, or too large for the device: what the graph keeps is not overwritten."""
    model = as_loaded()
    given = torch.randn(1, 4, 16, 16), torch.randn(1, 77, tiny.CONTEXT)

    def slopes():
        with differentiable(model.model, {}, checkpointing) as options:
            x, states = (plain(value).requires_grad_() for value in given)
            unet, t = model.model.diffusion_model, torch.tensor([300.0])
            out = unet(x, t, context=states, transformer_options=options["transformer_options"])
            return gradient(out.sin().sum(), [x, states])

    model.model.current_patcher = model
    expected = slopes()
    asked = fetched(model, monkeypatch, dynamic)
    for a, b in zip(slopes(), expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7 * float(b.abs().max()))
    assert asked
    assert not any(layer.weight_function or layer.bias_function for layer in asked)


def switches(model):
    """What the pack may switch on a loaded model."""
    found = [model.model.__dict__.get("manual_cast_dtype", "none of its own")]
    for module in model.model.diffusion_model.modules():
        names = ("comfy_cast_weights", "weight_function", "bias_function", "prev_comfy_cast_weights")
        found += [(name, module.__dict__.get(name, "none of its own")) for name in names]
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_precision_is_switched_for_the_differentiated_pass_only(dtype, error):
    """In it single precision; behind it, however it is left, everything as before, and a plain run bit-identical."""
    model = as_loaded(dtype=dtype)
    before = plain_run(model)
    whole = switches(model)
    during = []

    def look(base):
        during.append(base.get_dtype_inference())
        if error is not None:
            raise error("stop")

    if error is None:
        run(for_gradients(model, True), True, during=look)
    else:
        with pytest.raises(error):
            run(for_gradients(model, True), True, during=look)
    assert during == [torch.float32]
    assert switches(model) == whole
    assert model.model.get_dtype_inference() == dtype
    assert torch.equal(plain_run(model), before)


def test_an_error_while_weights_are_prepared_is_undone(monkeypatch):
    """Out of memory half way through."""
    model = as_loaded(dtype=torch.float16)
    before = plain_run(model)
    whole = switches(model)

    def full(*_):
        raise MemoryError

    monkeypatch.setattr(gradients, "_freeze", full)
    with pytest.raises(MemoryError):
        run(for_gradients(model, True))
    assert switches(model) == whole
    assert torch.equal(plain_run(model), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_are_loaded_once(dtype, monkeypatch):
    """Plain and differentiated runs in turn share the loaded weights."""
    loads, unloads = [], []
    patcher = comfy.model_patcher.ModelPatcher
    load, unpatch = patcher.load, patcher.unpatch_model
    monkeypatch.setattr(patcher, "load", lambda self, *a, **k: loads.append(1) or load(self, *a, **k))
    monkeypatch.setattr(
        patcher,
        "unpatch_model",
        lambda self, device_to=None, unpatch_weights=True: (
            (unloads.append(1) if unpatch_weights else None) or unpatch(self, device_to, unpatch_weights)
        ),
    )
    model = as_loaded(dtype=dtype)
    for _ in range(2):
        plain_run(model)
        run(for_gradients(model, True), True)
    assert len(loads) == 1 and not unloads


def test_the_host_makes_room_for_the_graph(monkeypatch):
    """In half precision for one of twice the bytes; a model that is made ready twice asks once."""
    asked = []
    estimate = comfy.sampler_helpers.estimate_memory
    monkeypatch.setattr(
        comfy.sampler_helpers,
        "estimate_memory",
        lambda model, shape, conds: asked.append(shape[0]) or estimate(model, shape, conds),
    )
    for dtype in (torch.float32, torch.float16):
        run(for_gradients(for_gradients(as_loaded(dtype=dtype), False), True), True)
    assert asked == [gradients.GRAPH_ROWS[True], 2 * gradients.GRAPH_ROWS[True]]
