"""The work of Dynamic Prompt Learning against the published code's, counted on the full-size UNet of SD1.5.

The UNet has no values (PyTorch's meta device), and goes through the pack's own way to differentiate it; what is counted
are floating-point operations of one step by the released settings. The published code (its released script):

- goes through the whole UNet for the losses, and back to all of its weights, which it does not freeze (it keeps the
  maps that require a gradient, and with frozen weights it keeps none);
- computes both halves of guidance in each update of the null text, and goes back through both, to the weights too;
- gathers the background's maps while it inverts, which is an evaluation more here.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import comfy.model_base
import comfy.model_patcher
import comfy.supported_models
import pytest
import torch
from attention_edit.attention.engine.reading import Reading, left_early
from attention_edit.attention.engine.slopes import kept_whole
from attention_edit.attention.methods.dpl.learner import looked_at
from attention_edit.attention.methods.dpl.losses import attention
from attention_edit.attention.methods.dpl.settings import RELEASED
from attention_edit.host.families import SD1, family_of
from attention_edit.host.gradients import differentiable, gradient
from comfy.ldm.modules.attention import attention_pytorch
from measure.benchmark_inversions import SD15
from measure.benchmark_mag import flop_counter

SIDE = 64
NOUNS = ((2,), (5,))
META = torch.device("meta")
PLAIN = {"transformer_options": {"optimized_attention_override": lambda _, *a, **k: attention_pytorch(*a, **k)}}
"""PyTorch's own attention, which asks for no free memory."""


class Counter:
    """Operations of the full-size UNet: forth, and forth and back in the pack's way and in the published one."""

    def __init__(self):
        config = comfy.supported_models.SD15({**SD15, "dtype": torch.float32})
        config.unet_config |= {"num_heads": 8, "num_head_channels": -1}
        self.model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.EPS, device=META).eval()
        patcher = comfy.model_patcher.ModelPatcher(self.model, load_device=META, offload_device=META)
        self.model.current_patcher = patcher
        self.layers = looked_at(family_of(patcher))

    def call(self, rows, options, context, reading=None):
        """One call of rows, whose maps go to a reading as the engine's hook hands them over."""

        def look(layer):
            def attend(q, k, v, extra):
                call = SimpleNamespace(layer=layer, q=q, k=k, heads=extra["n_heads"], conditional=[True], lengths=None)
                call.source, call.rewrite = None, lambda _, __, found: found
                reading.take(call)
                return attention_pytorch(q, k, v, extra["n_heads"])

            return attend

        inner = dict(options.get("transformer_options", {}))
        if reading is not None:
            inner["patches_replace"] = {"attn2": {layer.key: look(layer) for layer in self.layers}}
        x, t = torch.zeros(rows, 4, SIDE, SIDE, device=META), torch.zeros(rows, device=META)
        unet = self.model.diffusion_model
        return left_early(x, lambda: unet(x, t, context=context, transformer_options=inner))

    def loss(self, reading):
        """The learner's own, of what was read."""
        background, shape = torch.zeros((SIDE // 4) ** 2, device=META), (SIDE // 4, SIDE // 4)
        return RELEASED.losses.weighed(RELEASED.losses(attention(reading.maps), NOUNS, background, shape))

    def forth(self):
        """One evaluation."""
        with flop_counter() as counted, torch.no_grad():
            self.call(1, PLAIN, torch.zeros(1, 77, 768, device=META))
        return counted.get_total_flops()

    def ours(self, losses, checkpointing=False):
        """One update of the nouns, or of the null text."""
        with flop_counter() as counted, differentiable(self.model, {}, checkpointing) as options:
            leaf = torch.zeros(1, 77, 768, device=META).requires_grad_()
            context = leaf * 1  # the counter cannot follow leaves into modules
            reading = Reading(self.layers) if losses else None
            if losses and checkpointing:
                options = kept_whole(options, {max(self.layers, key=lambda layer: layer.index).block})
            out = self.call(1, options, context, reading)
            gradient(self.loss(reading) if losses else out.square().mean(), [leaf])
        return counted.get_total_flops()

    def published(self, losses):
        """The same as the published code does it."""
        rows = 1 if losses else 2
        self.model.diffusion_model.requires_grad_(True)
        with flop_counter() as counted:
            context = torch.zeros(rows, 77, 768, device=META).requires_grad_() * 1
            reading = Whole(self.layers) if losses else None
            out = self.call(rows, PLAIN, context, reading)
            value = self.loss(reading) if losses else out.square().mean()
            value.backward()
        return counted.get_total_flops()


class Whole(Reading):
    """A reading that does not leave the UNet."""

    def __init__(self, layers):
        super().__init__(layers)
        self.last = -1


@pytest.fixture(scope="module")
def counter():
    return Counter()


@pytest.fixture(scope="module")
def forth(counter):
    return counter.forth()


def our_step(counter, forth, checkpointing):
    """Operations of a step: its updates, the conditional half, where the last text lands, and the background's call."""
    updates = RELEASED.iterations * counter.ours(True, checkpointing)
    return updates + RELEASED.null.inner * counter.ours(False, checkpointing) + 3 * forth


@pytest.fixture(scope="module")
def lean(counter, forth):
    return our_step(counter, forth, False)


def test_the_work_is_at_most_045_of_the_published_codes(counter, forth, lean):
    """For the same numbers of updates; the published step ends with both halves of guidance."""
    updates = RELEASED.iterations * counter.published(True)
    published = updates + RELEASED.null.inner * counter.published(False) + 2 * forth
    print(f"{lean / published:.3f} of the published code's work")
    assert lean <= 0.45 * published


def test_an_update_of_the_nouns_takes_less_than_an_evaluation(counter, forth):
    """Forth to the last map, 0.494 of the UNet, and back from there to the text alone."""
    assert counter.ours(True) < forth


def test_saving_memory_is_a_third_more_work(counter, forth, lean):
    """As the node says: blocks are computed twice, but those ahead of the first word's attention."""
    assert our_step(counter, forth, True) / lean == pytest.approx(4 / 3, rel=0.05)


def test_the_plan_in_the_log_is_what_is_counted(forth, lean):
    """But for attention's way back, which computes its scores again in some kernels and so counts for more there."""
    null = replace(RELEASED.null, checkpointing=False)
    planned = replace(RELEASED, null=null).worth(SD1, 1, 1) + 1  # the background's
    assert lean / forth == pytest.approx(planned, rel=0.1)
