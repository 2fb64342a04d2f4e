"""Edits on transformers on the simulated GPU: near the CPU's result, with plain sampling's waits and next to no copies.

Tolerance: what plain sampling of the same network is off by in the type, and check_edits' beside it. In bfloat16 these
networks alone are off by some 100 units: their modulation multiplies rounding, which UNets have nothing like.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import check_edits
import device
import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine.install import install, pin
from attention_edit.attention.engine.layers import MIDDLE
from attention_edit.attention.maps.recorder import AttentionMaps, RecordMaps
from attention_edit.attention.methods.background import ExactBackground
from attention_edit.attention.methods.cpam import CPAM
from attention_edit.attention.methods.fpe import FPE
from attention_edit.attention.methods.local_blend import LocalBlend
from attention_edit.attention.methods.masactrl import MasaCtrl
from attention_edit.attention.methods.p2p import P2P
from attention_edit.attention.words.prompt import Prompt, read_prompt
from attention_edit.inversion.record import Inversion
from comfy.model_management import load_models_gpu
from comfy.patcher_extension import WrappersMP
from other_texts import OtherClip
from tiny_joint import LEFT, joint_inversion, joint_model, joint_prompt, joint_sample
from torch import Tensor

KINDS = ("Flux", "SD3", "ZImage")
STEPS = 4
MORE_COPIES = 2


def prompt(text: str, tokens: int) -> Prompt:
    """A prompt of as many tokens as the conditioning that stands for its encoding."""
    return read_prompt(OtherClip("Chroma", options={"t5xxl_min_length": tokens}), text)


CONTROLS: dict[str, Callable[[], Any]] = {
    "plain": lambda: None,
    "FPE": lambda: FPE(layers="all", end=1.0),
    "MasaCtrl": lambda: MasaCtrl(start=0.0, first_layer=0),
    "MasaCtrl masks": lambda: MasaCtrl(start=0.0, first_layer=0, masks=(LEFT, ~LEFT)),
    "CPAM": lambda: CPAM(edits.masks(LEFT, LEFT), normal_share=0.0, retain_layer=0),
    "Prompt-to-Prompt": lambda: P2P(prompt("a cat", 12), prompt("a black cat", 40), self_window=(0.0, 0.5)),
    "Local Blend": lambda: LocalBlend(prompt("a cat", 12), prompt("a black cat", 40), ["cat"], ["cat"], (), 0.0, 0.0),
    "Record Attention Maps": lambda: RecordMaps(AttentionMaps(prompt("a cat", 40)), (2,), (2,), blocks=MIDDLE),
    "Exact Background": lambda: ExactBackground(LEFT),
}


@cache
def model_of(kind: str, dtype: torch.dtype, where: torch.device) -> Any:
    return joint_model(kind, dtype=dtype, device=where)


@cache
def inverted(kind: str) -> Inversion:
    return joint_inversion(model_of(kind, torch.float32, tiny.CPU), kind, steps=STEPS)


@cache
def edited(
    kind: str, name: str, dtype: torch.dtype, where: torch.device, packed: bool = False
) -> tuple[Tensor, list[tuple[int, int]], int]:
    """The latent on the CPU, each later step's waits and copies to the device, and calls of the model in a step.

    The prompt is longer than the source's, so that Z-Image's keys are turned.
    """
    model, inversion, control = model_of(kind, dtype, where), inverted(kind), CONTROLS[name]()
    load_models_gpu([model])
    if control is not None:
        model = install(model, control, inversion, packed)
    model = pin(model, inversion, tuple(inversion.schedule))
    start = torch.zeros(1, *inversion.latents.shape[2:])
    seen: list[tuple[int, int]] = []
    prompts = joint_prompt(2, kind, 40), joint_prompt(3, kind)
    calls: list[int] = []
    model.add_wrapper(WrappersMP.APPLY_MODEL, lambda run, x, *a, **k: (calls.append(len(x)), run(x, *a, **k))[1])
    with device.counted():
        look = device.snapshot()
        sigmas = torch.tensor([1.0, 0.0])
        out = joint_sample(model, *prompts, start, start, sigmas, 3.0, callback=lambda *_: seen.append(look()))
    steps = [(after[0] - before[0], after[1] - before[1]) for before, after in pairwise(seen)]
    return out.cpu(), steps, len(calls) // STEPS


def error(kind: str, name: str, dtype: torch.dtype, packed: bool = False) -> float:
    """How far a result is from the CPU's in float32."""
    found, expected = (
        edited(kind, name, dtype, device.DEVICE, packed)[0],
        edited(kind, name, torch.float32, tiny.CPU)[0],
    )
    assert torch.isfinite(found).all()
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", [name for name in CONTROLS if name != "plain"])
@pytest.mark.parametrize("kind", KINDS)
def test_near_the_cpus_result(kind: str, name: str) -> None:
    """Each method meets all three types over the kinds; packed in one of them."""
    number = list(CONTROLS).index(name) + KINDS.index(kind)
    dtype = (torch.float32, torch.float16, torch.bfloat16)[number % 3]
    rounding = check_edits.ROUNDINGS[dtype] * check_edits.unit(dtype)
    assert error(kind, name, dtype, packed=number % 3 == 0) <= error(kind, "plain", dtype) + rounding


@pytest.mark.parametrize("name", [name for name in CONTROLS if name != "plain"])
@pytest.mark.parametrize("kind", ["Flux", "ZImage"])
def test_waits_and_copies(kind: str, name: str) -> None:
    """In each call of the model as many waits as in plain sampling, and copies for two more; one a step beside them."""
    _, plain, plain_calls = edited(kind, "plain", torch.float16, device.DEVICE)
    _, steps, calls = edited(kind, name, torch.float16, device.DEVICE)
    for part, more in ((0, 0), (1, MORE_COPIES)):
        in_a_call = (max(step[part] for step in plain) - 1) / plain_calls
        assert max(step[part] for step in steps) <= 1 + calls * in_a_call + more
