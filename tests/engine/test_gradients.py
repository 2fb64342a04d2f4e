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
from attention_edit.host.families import family_of
from attention_edit.host.gradients import differentiable, for_gradients, gradient
from differentiated import as_loaded, plain_run, run


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


def test_quantised_weights_are_refused():
    model = as_loaded()
    model.model_dtype = lambda: torch.float8_e4m3fn
    with pytest.raises(ValueError, match=r"float8.*quantisation"):
        for_gradients(model, True)


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
