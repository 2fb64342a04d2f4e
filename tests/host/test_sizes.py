"""The size of picture that a model draws best: its family's, the demo model's own, and multiples that its layers halve
evenly."""

from __future__ import annotations

import pytest
import tiny
import tiny_joint
from attention_edit.demo.bundle.load import UNET, _DemoModel
from attention_edit.demo.bundle.transformer import DemoTransformer, transformer_config
from attention_edit.host.sizes import picture_size


@pytest.mark.parametrize(
    ("kind", "v", "expected"),
    [
        ("SD1", False, (512, 64)),
        ("SD1", True, (512, 64)),
        ("SD2", False, (512, 64)),
        ("SD2", True, (768, 64)),
        ("SDXL", False, (1024, 32)),
        ("SSD1B", False, (1024, 32)),
        ("BK-SDM", False, (512, 64)),
    ],
)
def test_unets(kind, v, expected):
    """What their model cards say: SD 2.1 was trained at 768 with v prediction, its base model at 512 with eps."""
    assert picture_size(tiny.tiny_model(kind, v)) == expected


@pytest.mark.parametrize("kind", tiny_joint.CONFIGS)
def test_transformers(kind):
    """A million pixels; a token is 16 of them wide, by a patch of two cells of 8 or by one of 16."""
    assert picture_size(tiny_joint.joint_model(kind)) == (1024, 16)


def test_the_demo_models_say_their_own():
    assert _DemoModel(UNET).picture_side == DemoTransformer(transformer_config()).picture_side == 128
    model = tiny.tiny_model()
    model.model.model_config = _DemoModel(UNET)
    assert picture_size(model) == (128, 64)
