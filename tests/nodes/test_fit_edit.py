"""Fit Edit to Photo: the photograph's own pixels wherever nobody edited, whatever an editor did to the rest."""

from __future__ import annotations

import logging

import pytest
import torch
from attention_edit.nodes.fit_edit import FitEditNode
from moved import BOX, SIZE, drawn, put_box

PHOTO = drawn()[None]
EDITED = (put_box(drawn(scale=(1.02, 1.02), shift=(3.0, -4.0))) * 0.9 + 0.05)[None]


def fitted(edited=EDITED, photo=PHOTO, mask=None, threshold=0.1, grow=8, feather=8, match_colours=True):
    return FitEditNode.execute(edited, photo, match_colours, threshold, grow, feather, mask).args


def test_all_but_the_edit_is_the_photograph_bit_for_bit(caplog):
    caplog.set_level(logging.INFO)
    image, mask, whole = fitted()
    outside = mask == 0
    assert image.shape == whole.shape == PHOTO.shape and mask.shape == (1, *SIZE)
    assert torch.equal(image[outside], PHOTO[outside]) and 0.6 < float(outside.float().mean()) < 0.95
    assert torch.allclose(image[0, 115, 138], torch.tensor([0.9, 0.1, 0.1]), atol=0.03)
    assert "changed outside the mask: 0 pixels" in caplog.text
    assert "scaled by 1.020 x 1.020 and moved by -4.0 right, 3.0 down" in caplog.text


def test_a_mask_says_what_is_put_back_and_how_much_of_it():
    """Half of the box, at half strength: nothing else of the edit is seen."""
    mask = torch.zeros(1, *SIZE)
    mask[:, 80:160, 90:130] = 0.5
    image, weight, whole = fitted(mask=mask, feather=0)
    assert torch.equal(weight, mask)
    assert torch.equal(image[mask == 0], PHOTO[mask == 0])
    assert torch.allclose(image[mask > 0], torch.lerp(PHOTO, whole, 0.5)[mask > 0])


def test_a_mask_of_half_the_size_is_laid_on_the_photograph():
    small = BOX[::2, ::2].float()[None]
    half, whole = (fitted(mask=mask, feather=0)[1] > 0.5 for mask in (small, BOX.float()[None]))
    assert torch.equal(half, whole)


def test_the_border_of_the_edited_picture_is_no_seam():
    """A mask that reaches beyond what a picture that was moved still shows: the edit fades out before its border."""
    mask = torch.zeros(1, *SIZE)
    mask[:, :, 200:] = 1
    _, weight, _ = fitted(edited=drawn(shift=(0.0, 30.0))[None], mask=mask)
    row = weight[0, SIZE[0] // 2]
    assert float(row[220]) == 1 and float(row[-25]) == 0
    assert float((row[1:] - row[:-1]).abs().max()) < 1.5 / 9


def test_edits_add_up():
    """The first result is the second one's photograph: outside of both masks it is still the first photograph."""
    first, mask, _ = fitted()
    other = first.clone()
    other[:, 20:60, 220:290] = torch.tensor([0.0, 0.9, 0.9])
    second, more, _ = fitted(edited=other, photo=first)
    untouched = (mask == 0) & (more == 0)
    assert torch.equal(second[untouched], PHOTO[untouched])
    assert torch.allclose(second[0, 40, 250], torch.tensor([0.0, 0.9, 0.9]), atol=0.03)
    assert torch.equal(second[0, 115, 138], first[0, 115, 138])


def test_what_is_likely_to_disappoint_is_said(caplog):
    fitted(edited=PHOTO.clone())
    assert "Lower threshold, or connect a mask" in caplog.text
    fitted(edited=drawn(seed=9)[None])
    assert "Connect a mask of what was edited, or raise threshold" in caplog.text
    fitted(mask=0.4 * BOX.float()[None])
    assert "Put Threshold Mask before the mask" in caplog.text


def test_a_picture_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="Make the edited picture again"):
        fitted(edited=EDITED.clone().index_fill_(1, torch.tensor([3]), float("nan")))


@pytest.mark.parametrize(
    ("mask", "words"),
    [(torch.zeros(1, *SIZE), "Paint what was edited"), (torch.ones(1, 50, 200), "Connect a mask of the photograph")],
)
def test_masks_that_cannot_be_meant_are_refused(mask, words):
    with pytest.raises(ValueError, match=words):
        fitted(mask=mask)
