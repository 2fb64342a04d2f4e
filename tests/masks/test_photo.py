"""Fit Photo and Paste into Photo: the part around a mask at a model's size, and every other pixel as it was."""

from __future__ import annotations

import time

import pytest
import torch
from attention_edit.attention.masks.boxes import FittedSize, bounds
from attention_edit.attention.masks.composite import composite
from attention_edit.attention.masks.photo import black_under_mask, fit, paste

SD1 = FittedSize(512, 64)
SIZES = [(427, 640), (640, 427), (512, 512), (300, 200), (1500, 700), (90, 1000)]
"""(H, W) of photographs: usual ones, small ones, a panorama."""


def photo(height, width, batch=1, channels=3):
    return torch.rand(batch, height, width, channels, generator=torch.Generator().manual_seed(height + width))


def masked(height, width, top, left, rows, columns, value=1.0):
    mask = torch.zeros(1, height, width)
    mask[:, top : top + rows, left : left + columns] = value
    return mask


def ramps(height, width):
    """A picture whose first channel tells the column of a pixel and whose second its row, in units of 1 / 4096."""
    x, y = torch.arange(width) / 4096, torch.arange(height) / 4096
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width), x.expand(height, width)], -1)[None]


@pytest.mark.parametrize("size", SIZES)
def test_the_picture_shows_the_box_where_it_lies(size):
    """A linear ramp stays one under every symmetric filter: each pixel's value is its place on the photograph."""
    mask = masked(*size, size[0] // 3, size[1] // 2, size[0] // 8, size[1] // 8)
    picture, _, fitted = fit(ramps(*size), mask, SD1)
    box, (h, w) = fitted.box, fitted.size
    assert picture.shape == (1, h, w, 3)
    columns = box.left + (torch.arange(w) + 0.5) * box.width / w - 0.5
    rows = box.top + (torch.arange(h) + 0.5) * box.height / h - 0.5
    # The filter reaches two pixels of the coarser grid; what it sees beyond an edge is no ramp.
    reach_x, reach_y = (2 * max(1, box.width / w), 2 * max(1, box.height / h))
    part = fitted.part
    inner_x = (columns > part.left + reach_x) & (columns < part.left + part.width - 1 - reach_x)
    inner_y = (rows > part.top + reach_y) & (rows < part.top + part.height - 1 - reach_y)
    assert inner_x.any() and inner_y.any()
    found = picture[0][inner_y][:, inner_x] * 4096
    assert torch.allclose(found[..., 0], columns[inner_x].expand_as(found[..., 0]), atol=0.02)
    assert torch.allclose(found[..., 1], rows[inner_y][:, None].expand_as(found[..., 1]), atol=0.02)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("feather", [0, 8])
def test_every_pixel_outside_is_the_photographs(size, feather):
    """Bit for bit, with four channels too; inside the mask all is the edit's, and the edge lies between them."""
    given = photo(*size, channels=4)
    mask = masked(*size, size[0] // 3, size[1] // 2, size[0] // 8, size[1] // 8)
    picture, _, fitted = fit(given, mask, SD1)
    pasted = paste(fitted, torch.full_like(picture[..., :3], 2.0 / 3), feather)
    assert pasted.image.shape == given.shape and pasted.outside == 0
    differs = (pasted.image != given).any(-1)
    inside = mask > 0
    assert torch.allclose(pasted.image[inside][:, :3], torch.tensor(2.0 / 3))
    assert torch.equal(pasted.image[..., 3], given[..., 3]), "transparency"
    reach = round(feather * fitted.box.height / fitted.size[0])
    near = bounds(inside)
    grown = torch.zeros_like(inside)
    grown[:, max(0, near.top - reach) : near.top + near.height + reach,
          max(0, near.left - reach) : near.left + near.width + reach] = True  # fmt: skip
    assert not (differs & ~grown).any()
    assert (differs & grown & ~inside).any() == (reach > 0)


def test_it_counts_what_differs_outside():
    """The count is of the pixels themselves: of a mask that is given anew, those of the other one are not outside."""
    given = photo(200, 300)
    picture, _, fitted = fit(given, masked(200, 300, 40, 60, 50, 50), FittedSize(128, 64))
    again = paste(fitted, 1 - picture, 0, masked(200, 300, 60, 70, 20, 20))
    assert again.outside == 0
    assert int((again.image != given).any(-1).sum()) <= 400
    changed = (again.image != given).any(-1).nonzero()
    assert changed[:, 1].min() >= 60 and changed[:, 1].max() < 80


@pytest.mark.parametrize("size", SIZES)
def test_the_whole_picture_comes_back_whole(size):
    """Nothing is cut off, and what was padded is gone; a ramp comes back as itself."""
    given = ramps(*size)
    picture, mask, fitted = fit(given, None, SD1)
    assert mask.shape == (1, *fitted.size) and mask.min() == 1
    assert (fitted.part.height, fitted.part.width) == size
    pasted = paste(fitted, picture, 8)
    assert pasted.image.shape == given.shape and not pasted.cut
    assert torch.equal(paste(fitted, torch.zeros_like(picture), 8).image, torch.zeros_like(given))
    # Up to what the narrow side loses where it is made smaller: pixels of the coarser grid at the border.
    edge = 3 * max(1, round(fitted.box.height / fitted.size[0]))
    inner = slice(edge, -edge)
    assert torch.allclose(pasted.image[:, inner, inner], given[:, inner, inner], atol=0.05 / 4096 * max(size) / 100)


def test_a_picture_of_the_models_size_is_not_touched():
    given = photo(512, 512)
    picture, mask, fitted = fit(given, torch.zeros(1, 64, 64), SD1)
    assert torch.equal(picture, given) and mask.min() == 1 and fitted.mask is None
    assert torch.equal(paste(fitted, 1 - picture, 8).image, 1 - given)


def test_the_same_edge_as_composite_in_pixels():
    """Where nothing is resized the two are one mechanism."""
    given, mask = photo(512, 512), masked(512, 512, 200, 200, 90, 70)
    wanted = FittedSize(512, 64, whole=True)
    picture, chosen, fitted = fit(given, mask, wanted)
    assert torch.equal(chosen, mask)
    assert torch.equal(paste(fitted, 1 - picture, 8).image, composite(given, 1 - given, mask > 0.5, 8))


@pytest.mark.parametrize("on_photo", [False, True])
def test_soft_masks_are_shares(on_photo):
    """A mask of a quarter shows a quarter of the edit, without an edge of its own; traces below 8 bits are nothing."""
    given = torch.zeros(1, 512, 512, 3)
    mask = masked(512, 512, 100, 100, 200, 200, 0.25)
    mask[:, :20] = 1e-3
    picture, chosen, fitted = fit(given, mask, FittedSize(512, 64, whole=True))
    pasted = paste(fitted, torch.ones_like(picture), 8, mask if on_photo else None)
    assert torch.equal(pasted.image[..., 0], torch.where(mask == 0.25, 0.25, 0.0))
    assert torch.equal(chosen, torch.where(mask == 0.25, 0.25, 0.0))


def test_edits_add_up():
    """What is pasted is fitted again: both edits are there, and all else is the first photograph."""
    given = photo(400, 600)
    one, two = masked(400, 600, 30, 40, 60, 60), masked(400, 600, 300, 500, 60, 60)
    now = given
    for mask in (one, two):
        picture, _, fitted = fit(now, mask, FittedSize(128, 64))
        now = paste(fitted, torch.ones_like(picture), 0).image
    chosen = (one + two) > 0
    assert torch.allclose(now[chosen], torch.ones_like(now[chosen]))
    assert torch.equal(now[~chosen], given[~chosen])


def test_batches_of_pictures_and_masks():
    """One frame around all masks; each picture is as it would be with that frame alone."""
    given, wanted = photo(300, 400, batch=2), FittedSize(128, 64)
    masks = torch.cat([masked(300, 400, 40, 50, 60, 60), masked(300, 400, 160, 200, 50, 80)])
    picture, chosen, fitted = fit(given, masks, wanted)
    assert len(picture) == len(chosen) == 2
    both = paste(fitted, 1 - picture, 4)
    assert both.image.shape == given.shape and both.outside == 0
    assert (both.image[0] != given[0]).any() and torch.equal(both.image[0, 160:], given[0, 160:])
    assert torch.equal(both.image[1, :130], given[1, :130])
    single, masks_of_one, one = fit(given[:1], masks, wanted)
    assert len(single) == len(masks_of_one) == 2 and torch.equal(single[0], single[1])
    many = paste(one, 1 - single, 4).image
    assert torch.equal(many[0], both.image[0]) and not torch.equal(many[1], both.image[1])
    assert torch.equal(many[1, :130], given[0, :130])
    assert len(paste(one, torch.rand(2, *one.size, 3), 4).image) == 2


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_edits_of_another_size_are_resized(scale):
    """By half and by twice the size an edited ramp lands where the photograph has it."""
    size = (400, 600)
    _, _, fitted = fit(ramps(*size), masked(*size, 100, 200, 150, 150), SD1)
    h, w = (round(side * scale) for side in fitted.size)
    box = fitted.box
    x = (box.left + (torch.arange(w) + 0.5) * box.width / w - 0.5) / 4096
    y = (box.top + (torch.arange(h) + 0.5) * box.height / h - 0.5) / 4096
    edited = torch.stack([x.expand(h, w), y[:, None].expand(h, w), x.expand(h, w)], -1)[None]
    assert torch.allclose(paste(fitted, edited, 8).image, ramps(*size), atol=0.02 / 4096)
    with pytest.raises(ValueError, match=r"Connect the edit of .*, or one of the same shape: this one is 512x256"):
        paste(fitted, torch.zeros(1, 256, 512, 3), 8)
    assert paste(fitted, torch.zeros(1, fitted.size[0] - 8, fitted.size[1], 3), 8).outside == 0


def test_a_mask_of_another_size_is_of_the_photograph():
    """A fine one and one of a quarter of its size choose the same box and the same pixels."""
    given, fine = photo(512, 768), masked(512, 768, 128, 256, 128, 64)
    coarse = fine[:, ::4, ::4]
    picture, _, fitted = fit(given, coarse, SD1)
    whole = paste(fitted, 1 - picture, 0).image
    assert (whole != given).any(-1)[fine > 0].all()
    changed = bounds((whole != given).any(-1))
    assert abs(changed.top - 128) <= 4 and abs(changed.width - 64) <= 8
    with pytest.raises(ValueError, match="Crop or pad the mask"):
        fit(given, torch.ones(1, 100, 100), SD1)


def test_a_mask_for_the_way_back():
    """Of the fitted picture or of the photograph; an empty one is refused, for nothing would be seen."""
    given = photo(600, 800)
    picture, chosen, fitted = fit(given, masked(600, 800, 200, 300, 120, 100), FittedSize(128, 64))
    back = torch.zeros_like(chosen)
    back[:, 40:60, 50:80] = 1
    image = paste(fitted, 1 - picture, 0, back).image
    found, box = bounds((image != given).any(-1)), fitted.box
    rows, columns = box.height / fitted.size[0], box.width / fitted.size[1]
    assert abs(found.top - (box.top + 40 * rows)) <= rows and abs(found.height - 20 * rows) <= 2 * rows
    assert abs(found.left - (box.left + 50 * columns)) <= columns
    with pytest.raises(ValueError, match=r"Connect a mask of what has changed .* selects nothing"):
        paste(fitted, picture, 0, torch.zeros_like(back))


def test_what_reaches_the_boxs_edge_is_told():
    given = photo(600, 800)
    picture, _, fitted = fit(given, masked(600, 800, 200, 300, 120, 100), FittedSize(128, 64, context=0.0, zoom=16.0))
    assert paste(fitted, picture, 8).cut
    wide, _, fitted = fit(given, masked(600, 800, 0, 0, 120, 100), FittedSize(128, 64))
    assert not paste(fitted, wide, 8).cut, "the photograph's own border cuts nothing"


def test_what_cannot_be_fitted_is_refused():
    given, mask = photo(100, 100), masked(100, 100, 20, 20, 30, 30)
    broken = mask.clone()
    broken[0, 5, 5] = torch.nan
    with pytest.raises(ValueError, match=r"Connect another mask.*NaN"):
        fit(given, broken, SD1)
    with pytest.raises(ValueError, match=r"Bring the mask to 0\.\.1.* 255"):
        fit(given, mask * 255, SD1)
    with pytest.raises(ValueError, match="Connect another picture"):
        fit(given / given.sub(given[0, 30, 30]).abs().sum(-1, keepdim=True), mask, SD1)
    with pytest.raises(ValueError, match=r"Paint mask 2 of 2"):
        fit(given, torch.cat([mask, torch.zeros_like(mask)]), SD1)
    with pytest.raises(ValueError, match=r"one mask, or one per picture: the mask holds 3, and there are 2"):
        fit(given.repeat(2, 1, 1, 1), mask.repeat(3, 1, 1), SD1)
    with pytest.raises(ValueError, match=r"shape \(B, H, W, C\) to Fit Photo"):
        fit(given[0], mask, SD1)
    picture, _, fitted = fit(given, mask, SD1)
    with pytest.raises(ValueError, match="--fp32-vae"):
        paste(fitted, picture * torch.nan, 8)
    with pytest.raises(ValueError, match="batch of 2 where 3"):
        paste(fit(given.repeat(2, 1, 1, 1), mask, SD1)[2], picture.repeat(3, 1, 1, 1), 8)


def test_black_under_the_mask_is_noticed():
    """Front ends of July 2026 saved pictures so. A dark photograph, and one that is black all over, are none."""
    given, mask = photo(200, 200) + 0.01, masked(200, 200, 60, 60, 50, 50)
    lost = given * (1 - mask[..., None])
    assert black_under_mask(fit(lost, mask, SD1)[2])
    assert not black_under_mask(fit(given, mask, SD1)[2])
    assert not black_under_mask(fit(torch.zeros_like(given), mask, SD1)[2])
    assert not black_under_mask(fit(lost, None, SD1)[2])
    part = lost.clone()
    part[0, 80, 80] = 1 / 255
    assert not black_under_mask(fit(part, mask, SD1)[2])


def test_a_large_photograph_takes_seconds():
    """4000 x 3000 pixels, the largest box: of this process's time, so that a busy machine does not count."""
    given = torch.rand(1, 3000, 4000, 3)
    mask = masked(3000, 4000, 400, 500, 2200, 3000)
    begun = time.process_time()
    picture, _, fitted = fit(given, mask, FittedSize(1024, 16))
    between = time.process_time()
    pasted = paste(fitted, picture, 8)
    ended = time.process_time()
    assert pasted.outside == 0 and fitted.box.height > 2900
    assert between - begun < 5 and ended - between < 10
