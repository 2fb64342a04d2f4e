"""Fit Photo and Paste into Photo as nodes: whose size they take, and what they say."""

from __future__ import annotations

import logging

import pytest
import tiny
import torch
from attention_edit.attention.masks.edit_masks import edit_masks
from attention_edit.nodes.photo import AROUND, WHOLE, FitPhotoNode, PastePhotoNode

PHOTO = torch.rand(1, 300, 400, 3, generator=torch.Generator().manual_seed(1))
MASK = torch.zeros(1, 300, 400)
MASK[:, 100:160, 150:220] = 1


@pytest.fixture(autouse=True)
def _heard(caplog):
    caplog.set_level(logging.INFO, logger="attention_edit")


def fit(image=PHOTO, area=AROUND, size=0, multiple=0, **given):
    return FitPhotoNode.execute(image, area, 0.5, 2.0, size, multiple, **given).result


def paste(edited, photo, feather=8, **given):
    return PastePhotoNode.execute(edited, photo, feather, **given).result[0]


def test_the_model_says_the_size(caplog):
    image, mask, _ = fit(mask=MASK, model=tiny.tiny_model())
    assert image.shape[1] % 64 == image.shape[2] % 64 == 0 and image[..., 0].shape == mask.shape
    assert 0.75 < image.shape[1] * image.shape[2] / 512**2 < 1.25
    assert f"of 400x300, fitted to {image.shape[2]}x{image.shape[1]}" in caplog.text


def test_what_is_set_goes_before_the_model():
    assert fit(area=WHOLE, size=128, multiple=32, model=tiny.tiny_model())[0].shape[1:3] == (96, 128)
    assert fit(area=WHOLE, multiple=16, model=tiny.tiny_model())[0].shape[1:3] == (448, 592)
    assert fit(area=WHOLE, size=128)[0].shape[1] % 64 == 0


def test_a_size_is_needed():
    with pytest.raises(ValueError, match="Connect the model that edits to Fit Photo, or set its size"):
        fit(mask=MASK)
    unknown = tiny.tiny_model()
    unknown.model.model_config = object()
    with pytest.raises(ValueError, match="Set size and multiple of Fit Photo, such as 1024 and 16"):
        fit(mask=MASK, size=1024, model=unknown)
    assert fit(mask=MASK, size=1024, multiple=16, model=unknown)[0].shape[1] % 16 == 0


def test_it_says_that_nothing_changed_outside(caplog):
    image, _, photo = fit(mask=MASK, size=128)
    out = paste(1 - image, photo)
    assert "changed outside the mask: 0 pixels" in caplog.text
    assert torch.equal(out[:, :50], PHOTO[:, :50]) and (out[:, 100:160, 150:220] != PHOTO[:, 100:160, 150:220]).any()
    assert "Raise context" not in caplog.text


def test_edit_masks_say_how_it_is_put_back():
    """Their changed mask, which is larger than what was drawn."""
    image, mask, photo = fit(mask=MASK, size=128)
    masks = edit_masks(mask, "replace or recolour", 0.5)
    narrow, wide = paste(1 - image, photo, 0), paste(1 - image, photo, 0, mask=masks)
    assert torch.equal(wide, paste(1 - image, photo, 0, mask=masks.changed.float()))
    assert int((wide != PHOTO).any(-1).sum()) > 1.5 * int((narrow != PHOTO).any(-1).sum())


@pytest.mark.parametrize(
    ("image", "mask", "text"),
    [
        (PHOTO, torch.zeros(1, 64, 64), "Paint over what is to change"),
        (PHOTO * (1 - MASK[..., None]), MASK, "exactly black under its mask"),
        (PHOTO, MASK / 2, "strongest pixel is 0.5"),
    ],
)
def test_what_may_disappoint_is_said(image, mask, text, caplog):
    fit(PHOTO, mask=MASK, size=128)
    assert text not in caplog.text
    fit(image, mask=mask, size=128)
    assert text in caplog.text


def test_an_edit_that_is_cut_is_said(caplog):
    photo = FitPhotoNode.execute(PHOTO, AROUND, 0.0, 16.0, 64, 64, mask=MASK).result
    paste(photo[0], photo[2])
    assert "Raise context in Fit Photo" in caplog.text


def test_a_bypassed_paste_hands_on_the_edit():
    """The front end hands on the first input of the output's type."""
    assert next(entry.id for entry in PastePhotoNode.define_schema().inputs if entry.io_type == "IMAGE") == "edited"
