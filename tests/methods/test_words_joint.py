"""Methods that follow the words' maps, on joint attention: Local Blend, MasaCtrl by words, CPAM's refined masks."""

from __future__ import annotations

import edits
import pytest
import torch
from attention_edit.attention.methods.cpam import CPAM
from attention_edit.attention.methods.masactrl import MasaCtrl
from followed_words import CONTROLS, follow, inverted
from tiny_joint import EXACT, LEFT, joint_model

ALL = pytest.mark.parametrize("name", list(CONTROLS))


@ALL
@pytest.mark.parametrize("kind", ["Flux", "ZImage", "QwenImage"])
def test_it_follows_the_word(kind: str, name: str) -> None:
    """Without the maps the result is another one."""
    controls, (model, inversion) = CONTROLS[name], inverted(kind)
    out = follow(model, inversion, *controls, kind=kind)
    without = {"Local Blend": controls[:1], "Local Blend, subtracting": (), "MasaCtrl": (MasaCtrl(0.0, 1),)}
    other = without.get(name, (CPAM(edits.masks(LEFT, LEFT)),))
    assert torch.isfinite(out).all()
    assert edits.difference(out, follow(model, inversion, *other, kind=kind)) > 10 * EXACT


@pytest.mark.parametrize("kind", ["Flux", "ZImage", "QwenImage"])
def test_nothing_is_left_on_the_model(kind: str) -> None:
    """After all of them it draws what one draws that none was put on."""
    model, inversion = inverted(kind)
    for controls in CONTROLS.values():
        follow(model, inversion, *controls, kind=kind)
    assert torch.equal(follow(model, inversion, kind=kind), follow(joint_model(kind), inversion, kind=kind))
