"""The part of a photograph that is fitted, and the size that it is fitted to."""

from __future__ import annotations

import pytest
from attention_edit.attention.masks.boxes import Box, FittedSize, fitted_size, of_shape, with_context

SD1 = FittedSize(512, 64)
SIZES = [(427, 640), (640, 427), (512, 512), (300, 200), (1500, 700), (90, 1000)]
"""(H, W) of photographs: usual ones, small ones, a panorama."""


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("place", [(0.0, 0.0), (0.4, 0.5), (0.85, 0.9), (0.0, 0.9)])
def test_the_box_holds_the_mask_and_has_the_pictures_proportions(size, place):
    """Inside the photograph wherever it is not larger than that; then it reaches evenly over both borders."""
    height, width = size
    rows, columns = max(1, height // 9), max(1, width // 7)
    top, left = (int(share * (side - own)) for share, side, own in zip(place, size, (rows, columns), strict=True))
    mask = Box(top, left, rows, columns)
    region = with_context(mask, SD1, size)
    h, w = fitted_size(region, SD1.side, SD1.multiple)
    box = of_shape(region, (h, w), size)
    assert h % 64 == w % 64 == 0
    assert box.top <= region.top <= top and box.left <= region.left <= left
    assert top + rows <= region.top + region.height <= box.top + box.height
    assert left + columns <= region.left + region.width <= box.left + box.width
    assert abs(box.width - box.height * w / h) < 1 or abs(box.height - box.width * h / w) < 1
    for first, length, whole in ((box.top, box.height, height), (box.left, box.width, width)):
        if length <= whole:
            assert 0 <= first <= whole - length
        else:
            assert abs(-first - (first + length - whole)) <= 1


def test_usual_photographs_get_usual_sizes():
    """Little beside the photograph is shown, at nearly the area that the model knows; a square as it is."""
    assert fitted_size(Box(0, 0, 512, 512), 512, 64) == (512, 512)
    assert fitted_size(Box(0, 0, 427, 640), 512, 64) == (384, 576)
    assert fitted_size(Box(0, 0, 3000, 4000), 1024, 16) == (880, 1184)
    assert fitted_size(Box(0, 0, 90, 5000), 512, 64) == (256, 1024)
    assert fitted_size(Box(0, 0, 100, 100), 128, 64) == (128, 128)
    assert fitted_size(Box(0, 0, 100, 100), 100, 64) == (128, 128), "never of no pixels"


@pytest.mark.parametrize("side", [512, 768, 1024])
@pytest.mark.parametrize("multiple", [16, 64])
@pytest.mark.parametrize("proportion", [0.4, 0.7, 1.0, 1.5, 2.1, 3.3])
def test_the_chosen_size_is_the_best_of_all(side, multiple, proportion):
    """Against every size there is: no other shows less beside the region at an area as near to the model's."""
    region = Box(0, 0, 1000, round(1000 * proportion))
    steps = range(side // 2, 2 * side + 1, multiple)

    def beside_and_area(size):
        h, w = size
        scale = min(h / region.height, w / region.width)
        return (h / scale) * (w / scale) / (region.height * region.width), abs(h * w / side**2 - 1)

    beside, off = beside_and_area(fitted_size(region, side, multiple))
    others = [beside_and_area((h, w)) for h in steps for w in steps]
    assert not any(b < beside - 1e-6 and o < off - 1e-6 for b, o in others)


def test_a_small_part_is_enlarged_only_so_far():
    """Of a mask of 10 pixels so much is shown that it is twice as large; the border of the photograph ends it."""
    region = with_context(Box(1000, 1500, 10, 10), SD1, (3000, 4000))
    assert (region.height, region.width) == (256, 256)
    assert with_context(Box(1000, 1500, 10, 10), FittedSize(512, 64, zoom=16), (3000, 4000)).height == 32
    assert with_context(Box(10, 10, 10, 10), SD1, (100, 90)) == Box(0, 0, 100, 90)


def test_context_is_a_share_of_the_masks_size():
    wide = with_context(Box(1000, 1000, 300, 1200), FittedSize(512, 64, context=0.5), (3000, 4000))
    assert wide == Box(700, 700, 900, 1800)
    assert with_context(Box(0, 1000, 300, 1200), FittedSize(512, 64, context=0.5), (3000, 4000)).top == 0
