"""Fit Edit to Photo against pictures whose shift, scale, gain and edit are known, drawn exactly from one function."""

from __future__ import annotations

import pytest
import torch
from attention_edit.attention.masks.registration import lay_on_photo, phase_shift, registration
from moved import BOX, SIZE, drawn, put_box

NONE = ((1.0, 1.0), (0.0, 0.0))
MOVES = [
    NONE,
    ((1.0, 1.0), (0.5, -0.3)),
    ((1.0, 1.0), (7.25, -12.6)),
    ((1.013, 1.013), (2.4, 3.3)),
    ((0.94, 0.94), (-4.2, 6.1)),
    ((1.15, 1.15), (0.0, 0.0)),
    ((1.02, 0.99), (1.5, -2.5)),
]


@pytest.mark.parametrize(("scale", "shift"), MOVES)
@pytest.mark.parametrize("edit", [False, True])
def test_shift_and_scale_are_found_to_a_tenth_of_a_pixel(scale, shift, edit):
    """At every corner of the picture, with an object of a twentieth of it replaced."""
    edited = drawn(scale=scale, shift=shift)
    found = registration(drawn(), put_box(edited) if edit else edited)
    for side, one, by, was, moved in zip(SIZE, found.scale, found.shift, scale, shift, strict=True):
        for corner in (-side / 2, side / 2):
            assert abs((one * corner + by * side) - (was * corner + moved)) < 0.1


@pytest.mark.parametrize(("y", "x"), [(0, 0), (5, -9), (-20, 31)])
def test_phase_correlation_finds_whole_pixels(y, x):
    found, _ = phase_shift(*(drawn(shift=by).movedim(-1, 0) for by in ((0, 0), (y, x))))
    assert found == (y, x)


@pytest.mark.parametrize("gain", [0.7, 1.0, 1.2])
def test_colours_are_matched_on_what_was_not_edited(gain):
    """Each channel with a gain and offset of its own; the edit keeps its colour as it was before them."""
    photo, offset = drawn(), torch.tensor([0.05, -0.03, 0.02])
    gains = torch.tensor([gain, 1.0, 2 - gain])
    edited = put_box(drawn(shift=(1.5, -2.25))) * gains + offset
    made = lay_on_photo(photo[None], edited[None], None, True, 0.1, 0)
    inner = torch.zeros(SIZE, dtype=torch.bool)
    inner[8:-8, 8:-8] = True
    kept = inner & ~torch.nn.functional.max_pool2d(BOX[None].float(), 15, 1, 7)[0].bool()
    # A pixel's tenth of the steepest slope, and the bicubic filter's own error.
    assert float((made.image[0] - photo)[kept].abs().max()) < 0.01
    assert torch.allclose(made.image[0, 118, 135], torch.tensor([0.9, 0.1, 0.1]), atol=0.01)
    left = lay_on_photo(photo[None], edited[None], None, False, 0.1, 0).image
    assert gain == 1.0 or float((left[0] - photo)[kept].abs().max()) > 0.05


@pytest.mark.parametrize(("scale", "shift"), MOVES)
def test_the_mask_is_of_what_was_edited(scale, shift):
    """Where the replaced object is on the photograph, to the five pixels of the mean, and nowhere else."""
    photo = drawn()
    made = lay_on_photo(
        photo[None], put_box(drawn(scale=scale, shift=shift), (1.0, 1.0, 0.0))[None], None, True, 0.1, 0
    )
    rows, columns = (made.mask[0].any(dim).nonzero()[:, 0] for dim in (1, 0))
    for line, side, times, by, ends in zip((rows, columns), SIZE, scale, shift, ((90, 150), (100, 170)), strict=True):
        first, last = (((end - side / 2 - by) / times + side / 2) for end in ends)
        assert abs(int(line[0]) - first) <= 3 and abs(int(line[-1]) + 1 - last) <= 3
    grown = lay_on_photo(photo[None], put_box(drawn(), (1.0, 1.0, 0.0))[None], None, True, 0.1, 6).mask
    assert grown[0, 84:156, 94:176].all()


def test_a_mask_that_is_given_is_handed_on_and_has_no_say():
    """Most of the picture is edited: with its mask the rest still tells where it was."""
    photo, scale, shift = drawn(), (1.02, 1.02), (3.5, -2.5)
    edited = drawn(scale=scale, shift=shift)
    edited[:, 90:] = drawn(seed=5)[:, 90:]
    mask = torch.zeros(1, *SIZE, dtype=torch.bool)
    mask[:, :, 82:] = True
    made = lay_on_photo(photo[None], edited[None], mask, True, 0.1, 0)
    assert abs(made.found[0].scale[0] - 1.02) < 0.005 and abs(made.found[0].shift[0] * SIZE[0] - 3.5) < 0.5
    assert not (made.mask & ~mask).any() and made.mask[:, 40:-40, 100:-40].all()


def test_sizes_and_batches():
    """Half and twice the size, and a batch each with its own shift."""
    photo = drawn()
    for factor in (0.5, 2):
        size = tuple(round(side * factor) for side in SIZE)
        edited = drawn(size, shift=(3.0 * factor, -4.0 * factor))
        found = lay_on_photo(photo[None], edited[None], None, True, 0.1, 0)
        assert found.image.shape == (1, *SIZE, 3)
        assert abs(found.found[0].shift[0] * SIZE[0] - 3) < 0.1 and abs(found.found[0].shift[1] * SIZE[1] + 4) < 0.1
    both = torch.stack([drawn(shift=(2.0, 0.0)), drawn(shift=(0.0, 5.0))])
    made = lay_on_photo(photo[None], both, None, True, 0.1, 0)
    assert [round(found.shift[1] * SIZE[1]) for found in made.found] == [0, 5]
    with pytest.raises(ValueError, match=r"one image, or one per image .* 2 photographs, 3 edited"):
        lay_on_photo(photo.expand(2, -1, -1, -1), photo.expand(3, -1, -1, -1), None, True, 0.1, 0)
