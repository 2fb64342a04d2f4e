"""What tests of methods that follow the words' maps share on joint attention: the controls, and a run of them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import edits
import torch
from attention_edit.attention.masks.refinement import make_refinement
from attention_edit.attention.methods.cpam import CPAM
from attention_edit.attention.methods.local_blend import LocalBlend
from attention_edit.attention.methods.masactrl import MasaCtrl, WordMasks
from attention_edit.attention.methods.p2p import P2P
from attention_edit.inversion.ddim_inversion import DDIMInversion
from attention_edit.inversion.record import Inversion
from other_texts import read
from tiny_joint import LEFT, joint_latent, joint_model, joint_prompt, joint_run
from torch import Tensor

CAT, DOG = (read("Chroma", text) for text in ("a cat on a mat", "a very black dog on a mat"))
BLEND = LocalBlend(CAT, DOG, ["cat"], ["dog"], start=0.0, threshold=0.97)
CONTROLS: dict[str, Any] = {
    "Local Blend": (P2P(CAT, DOG, layers="all"), BLEND),
    "Local Blend, subtracting": (replace(BLEND, subtract=("mat",), subtract_threshold=0.97),),
    "Local Blend on CPAM": (CPAM(edits.masks(LEFT, LEFT)), BLEND),
    "MasaCtrl": (MasaCtrl(0.0, 1, words=WordMasks(CAT, DOG, "cat", "dog", threshold=0.5)),),
    "CPAM": (CPAM(replace(edits.masks(LEFT, LEFT), refinement=make_refinement(DOG, "dog", start=0.25))),),
    "CPAM, sharpened": (
        CPAM(replace(edits.masks(LEFT, LEFT), refinement=make_refinement(DOG, "dog", start=0.25, own_scale=4))),
    ),
    "CPAM, released": (
        CPAM(replace(edits.masks(LEFT, LEFT), refinement=make_refinement(DOG, "dog", start=0.25, released=True))),
    ),
}
"""By name, those whose last one follows words."""


@cache
def inverted(kind: str, batch: int = 1) -> tuple[Any, Inversion]:
    """A model, and random images inverted with the first prompt."""
    model = joint_model(kind)
    with torch.inference_mode():
        latent, prompt = {"samples": joint_latent(1, kind, batch)}, joint_prompt(5, kind, tokens=CAT.length)
        return model, DDIMInversion(4, flow_iterations=1)(model, latent, prompt).inversion


def follow(model: Any, inversion: Inversion, *controls: Any, kind: str, **options: Any) -> Tensor:
    """Run controls with the second prompt."""
    positive = joint_prompt(2, kind, tokens=DOG.length)
    return joint_run(model, inversion, *controls, kind=kind, cfg=3.0, positive=positive, **options)


@cache
def stock(kind: str, batch: int = 1) -> Tensor:
    """What the second prompt draws without controls."""
    model, inversion = inverted(kind, batch)
    return follow(model, inversion, kind=kind, batch=batch)
