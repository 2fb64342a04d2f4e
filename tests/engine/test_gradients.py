"""Gradients through the host's UNet: right, without a trace on the model, and stopped when the user stops."""

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
from attention_edit.host.families import family_of
from attention_edit.host.gradients import differentiable, for_gradients, gradient, plain

SIGMA = 2.0


def as_loaded(kind="SD1", dtype=torch.float32):
    """A model as the host's loader node leaves it: made in inference mode."""
    with torch.inference_mode():
        return tiny.tiny_model(kind, dtype=dtype)


class Differentiated(comfy.samplers.Sampler):
    """A run that differentiates the mean square of the prediction by the positive states and by x."""

    def __init__(self, checkpointing=False, during=None):
        self.checkpointing, self.during = checkpointing, during
        self.result = None

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, *_, **__):
        model, conds = model_wrap.inner_model, model_wrap.conds["positive"]
        with differentiable(model, extra_args["model_options"], self.checkpointing) as options:
            conds, x, sigma = plain(conds), plain(latent_image), torch.full((len(latent_image),), SIGMA)
            states = conds[0]["model_conds"]["c_crossattn"].cond.requires_grad_()
            x.requires_grad_()

            def value(x):
                denoised = comfy.samplers.calc_cond_batch(model, [conds], x, sigma, options)[0]
                return denoised.square().mean()

            if self.during is not None:
                self.during(model)
            loss = value(x)
            self.result = (loss.detach(), *gradient(loss, [states, x]))
        return latent_image


def run(model, checkpointing=False, during=None, kind="SD1", control=None):
    sampler = Differentiated(checkpointing, during)
    guider = comfy.samplers.CFGGuider(model)
    positive = tiny.prompt(2, kind)
    if control is not None:
        positive[0][1]["control"] = control
        positive[0][1]["control_apply_to_uncond"] = False
    guider.set_conds(positive, tiny.prompt(3, kind))
    start = tiny.latent(4)
    with torch.inference_mode():
        guider.sample(torch.zeros_like(start), start, sampler, torch.tensor([SIGMA, 0.0]), disable_pbar=True, seed=0)
    return sampler.result


def plain_run(model, kind="SD1"):
    sigmas = torch.tensor([2.0, 1.0, 0.5])
    return tiny.sample(model, tiny.prompt(2, kind), tiny.prompt(3, kind), tiny.latent(4), sigmas)


def test_central_difference_in_float64():
    """The UNet alone, to the accuracy of double precision."""
    model = tiny.tiny_model(dtype=torch.float64)
    model.model.current_patcher = model
    rng = torch.Generator().manual_seed(0)
    x, states, along_x, along_states = (
        torch.randn(shape, dtype=torch.float64, generator=rng) for shape in 2 * [(1, 4, 16, 16), (1, 77, tiny.CONTEXT)]
    )
    t = torch.tensor([300.0])

    def value(x, states, options):
        out = model.model.diffusion_model(x, t, context=states, transformer_options=options["transformer_options"])
        return out.sin().sum()

    with differentiable(model.model, {}, checkpointing=True) as options:
        x, states = x.requires_grad_(), states.requires_grad_()
        found = gradient(value(x, states, options), [x, states])
        with torch.no_grad():
            step = 1e-5
            ends = [value(x + s * step * along_x, states + s * step * along_states, options) for s in (1, -1)]
    expected = (ends[0] - ends[1]) / (2 * step)
    slope = (found[0] * along_x).sum() + (found[1] * along_states).sum()
    assert float(slope) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("kind", ["SD1", "SD2", "SDXL"])
def test_checkpointing_changes_nothing_but_memory(kind):
    model = as_loaded(kind)
    kept, again = (run(model, checkpointing, kind=kind) for checkpointing in (False, True))
    for a, b in zip(kept, again, strict=True):
        assert float(a.abs().max()) > 0
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7 * float(a.abs().max()))


def test_patches_see_their_own_layer_on_the_way_back():
    """The host writes the present block into one shared dictionary; a block computed again must see its own."""
    model, seen = as_loaded(), []
    patched = model.clone()

    def spy(q, k, v, options):
        seen.append((*options["block"], options["transformer_index"]))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    for layer in family_of(model).layers:
        patched.set_model_attn2_replace(spy, *layer.block, layer.depth)
    run(patched, checkpointing=True)
    layers = [(*layer.block, layer.index) for layer in family_of(model).layers]
    assert seen == layers + layers[::-1]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["SD1", "SDXL"])
def test_nothing_is_left_on_the_model(kind, checkpointing):
    """A plain run afterwards is bit-identical, no weight has a gradient, and every flag is as it was."""
    model = as_loaded(kind)
    before = plain_run(model, kind)
    options = repr(model.model_options)
    weights = {name: weight.clone() for name, weight in model.model.named_parameters()}
    run(model, checkpointing, kind=kind)
    assert torch.equal(plain_run(model, kind), before)
    assert repr(model.model_options) == options
    for name, weight in model.model.named_parameters():
        assert weight.grad is None and torch.equal(weight, weights[name])


def test_weights_are_no_part_of_the_graph():
    """Weights that ask for gradients (a model that was not made in inference mode) are left out too."""
    model = tiny.tiny_model()
    weights = [weight.requires_grad_() for weight in model.model.diffusion_model.parameters()]
    asked = []
    run(model, during=lambda base: asked.extend(w.requires_grad for w in base.diffusion_model.parameters()))
    assert asked and not any(asked)
    assert all(weight.requires_grad and weight.grad is None for weight in weights)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_everything_as_it_was(error):
    model = tiny.tiny_model()
    weights = [weight.requires_grad_() for weight in model.model.diffusion_model.parameters()]
    before = plain_run(model)

    def fail(_):
        raise error("stop")

    with pytest.raises(error):
        run(model, checkpointing=True, during=fail)
    assert all(weight.requires_grad and weight.grad is None for weight in weights)
    assert torch.equal(plain_run(model), before)
    assert torch.is_grad_enabled()


def test_cancel_is_seen_before_the_next_call_ends():
    model = as_loaded()
    calls = []
    patched = model.clone()
    patched.set_model_attn1_patch(lambda n, context, value, eo: calls.append(1) or (n, context, value))
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(patched, during=lambda _: comfy.model_management.interrupt_current_processing())
    comfy.model_management.interrupt_current_processing(False)
    assert len(calls) < len(family_of(model).layers)
    assert run(model)[0] == run(as_loaded())[0]


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


def test_quantised_weights_are_refused():
    model = as_loaded()
    model.model_dtype = lambda: torch.float8_e4m3fn
    with pytest.raises(ValueError, match=r"float8.*quantisation"):
        for_gradients(model, True)


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


class Residuals(comfy.controlnet.ControlBase):
    """A ControlNet that adds to the middle block and to all outputs, in place as the host does."""

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        assert not x_noisy.requires_grad
        shapes = [(32, 16)] * 3 + [(32, 8), (64, 8), (64, 8), (64, 4)] + [(128, 4)] * 2 + [(128, 2)] * 3
        rng = torch.Generator().manual_seed(0)
        outputs = [torch.randn(len(x_noisy), c, s, s, generator=rng) for c, s in shapes]
        return {"output": outputs, "middle": [torch.randn(len(x_noisy), 128, 2, 2, generator=rng)]}

    def get_models(self):
        return []


def test_controlnet_residuals():
    """They change the gradient, and a block that is computed again still has them."""
    model = as_loaded()
    kept, again = (run(model, checkpointing, control=Residuals()) for checkpointing in (False, True))
    assert not torch.allclose(kept[1], run(model)[1], rtol=1e-2)
    for a, b in zip(kept, again, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7 * float(a.abs().max()))


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
