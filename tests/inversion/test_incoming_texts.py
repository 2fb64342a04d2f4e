"""Tensors that come in are looked at once: a text that would draw NaN is refused before the first evaluation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from attention_edit.host.guider import cfg_guider
from attention_edit.inversion.record import Inversion
from attention_edit.nodes.inversion import InvertNode


def spoiled(number: float, where: str = "states"):
    states, options = tiny.prompt(1, "SDXL")[0]
    tensor = states if where == "states" else options[where]
    tensor.view(-1)[5] = number
    return [[states, options]]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_source_prompt_that_is_not_finite_is_refused_at_the_node(model, number):
    calls = []
    hook = model.model.diffusion_model.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=r"^Encode the source prompt again.*states hold NaN or infinite"):
        InvertNode.execute(model, {"samples": tiny.latent(0)}, spoiled(number), 3, "leading, offset 0 (editing papers)")
    hook.remove()
    assert not calls


def test_each_tensor_of_each_prompt_is_looked_at(model):
    with pytest.raises(ValueError, match=r"source prompt again.*pooled_output"):
        cfg_guider(model, spoiled(float("nan"), "pooled_output"), None, 1.0)
    with pytest.raises(ValueError, match=r"negative prompt again.*states"):
        cfg_guider(model, tiny.prompt(1), spoiled(float("nan")), 7.5)
    with pytest.raises(ValueError, match=r"^Connect CLIP Text Encode.*shape \(77, 16\)"):
        cfg_guider(model, [[tiny.prompt(1)[0][0][0], {}]], None, 1.0)


def test_a_trajectory_that_is_not_finite_is_no_inversion():
    whole = Inversion(torch.ones(3, 1, 4, 8, 8), (0.03, 0.5, 2.0), 3, 0, "SD1.x", "eps", tiny.prompt(3))
    with pytest.raises(ValueError, match="latents of DDIM inversion hold NaN"):
        replace(whole, latents=whole.latents * float("nan"))
    with pytest.raises(ValueError, match="null text of DDIM inversion holds NaN"):
        replace(whole, null_states=torch.full((2, 1, 77, 16), float("nan")))
