"""A source prompt that is more than a text, or a latent with a mask, is refused by name before the first evaluation."""

from __future__ import annotations

import comfy.hooks
import pytest
import tiny
import torch
from attention_edit.inversion.generated import GeneratedSource
from attention_edit.nodes.inversion import InvertNode

import nodes as host_nodes

SCHEDULE = "leading, offset 0 (editing papers)"


def with_options(**options):
    return [[states, {**given, **options}] for states, given in tiny.prompt(1)]


def limited(start, end, prompt=None):
    return host_nodes.ConditioningSetTimestepRange().set_range(prompt or tiny.prompt(1), start, end)[0]


CASES = {
    r"a timestep range \(0 to 0.5\)": lambda: limited(0.0, 0.5),
    r"a timestep range \(0.5 to 1\)": lambda: limited(0.5, 1.0),
    "2 parts, a timestep range": lambda: [*limited(0.0, 0.5), *limited(0.5, 1.0, tiny.prompt(2))],
    "0 parts": list,
    "an area": lambda: host_nodes.ConditioningSetArea().append(tiny.prompt(1), 64, 64, 0, 0, 1.0)[0],
    "a mask": lambda: host_nodes.ConditioningSetMask().append(tiny.prompt(1), torch.ones(1, 16, 16), "default", 1.0)[0],
    "a strength of 0.5": lambda: host_nodes.ConditioningSetAreaStrength().append(tiny.prompt(1), 0.5)[0],
    "hooks": lambda: with_options(hooks=comfy.hooks.HookGroup()),
    "a ControlNet": lambda: with_options(control=object()),
    "GLIGEN": lambda: with_options(gligen=("position", None, [])),
    "unCLIP": lambda: with_options(unclip_conditioning=[{}]),
    "an inpainting image": lambda: with_options(concat_latent_image=torch.zeros(1, 4, 16, 16)),
}


@pytest.fixture
def calls(model):
    found = []
    hook = model.model.diffusion_model.register_forward_pre_hook(lambda *_: found.append(1))
    yield found
    hook.remove()


@pytest.mark.parametrize("name", CASES)
def test_more_than_a_text_is_refused_by_name(model, calls, name):
    with pytest.raises(ValueError, match=rf"^Connect a CLIP Text Encode directly.*source prompt.* has .*{name}"):
        InvertNode.execute(model, {"samples": tiny.latent(0)}, CASES[name](), 3, SCHEDULE)
    with pytest.raises(ValueError, match=f"source prompt of Source from Prompt.*{name}"):
        GeneratedSource(3)(model, {"samples": tiny.latent(0)}, CASES[name]())
    assert not calls


def test_what_changes_nothing_is_taken(model):
    """A range over all steps, strength 1, and the options that the host's text encoders write."""
    whole = with_options(start_percent=0.0, end_percent=1.0, strength=1.0, width=512, height=512)
    (made,) = InvertNode.execute(model, {"samples": tiny.latent(0)}, whole, 3, SCHEDULE).result
    (plain,) = InvertNode.execute(model, {"samples": tiny.latent(0)}, tiny.prompt(1), 3, SCHEDULE).result
    assert torch.equal(made.latents, plain.latents)


def test_a_noise_mask_is_refused(model, calls):
    latent = {"samples": tiny.latent(0), "noise_mask": torch.ones(1, 1, 128, 128)}
    with pytest.raises(ValueError, match=r"^Connect VAE Encode's latent without a noise mask"):
        InvertNode.execute(model, latent, tiny.prompt(1), 3, SCHEDULE)
    assert not calls
