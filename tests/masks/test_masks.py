"""Masks of edits: tasks, sizes, growing; and the original's pixels around an edit."""

from __future__ import annotations

import time

import edits
import pytest
import torch
import torch.nn.functional as F
from attention_edit.attention.masks.cells import as_mask, check_aspect, dilate, distance, resize
from attention_edit.attention.masks.composite import composite
from attention_edit.attention.masks.edit_masks import TASKS, edit_masks
from attention_edit.attention.methods.background import ExactBackground
from attention_edit.attention.methods.cpam import CPAM
from every_method import outputs


def test_tasks():
    mask = edits.box().float()
    replace, retain, ground, remove, add, part = (edit_masks(mask, task, 0.1) for task in TASKS)
    assert torch.equal(replace.source, edits.box()) and replace.target[edits.box()].all()
    assert replace.target.sum() > replace.source.sum()
    assert retain.retain and not replace.retain
    assert torch.equal(ground.source, ~edits.box())
    assert not remove.target.any() and torch.equal(remove.source, replace.target)
    for drawn in (add, part):
        assert not drawn.retain
        assert all(torch.equal(m, edits.box()) for m in (drawn.source, drawn.target, drawn.changed))
    assert torch.equal(edit_masks(1 - mask, TASKS[0], 0.1, invert=True).source, replace.source)


@pytest.mark.parametrize(("mask", "word"), [(edits.NONE, "nothing"), (edits.ALL, "everything")])
def test_masks_that_select_nothing_or_everything_are_refused(mask, word):
    with pytest.raises(ValueError, match=word):
        edit_masks(mask.float(), TASKS[0], 0.1)


def test_masks_with_nan_are_refused():
    mask = edits.box().float()
    mask[:, 5] = torch.nan
    for node, given in (("Masks", {"mask": mask}), ("Region", {"mask": mask, "prompt": []})):
        with pytest.raises(ValueError, match=r"^Connect another mask.*128 of 16384 pixels are NaN"):
            outputs(node, **given)


def test_a_mask_that_growing_makes_everything_is_refused():
    mask = torch.ones(1, 64, 64)
    mask[:, :4] = 0
    with pytest.raises(ValueError, match=r"dilation of 0.5.*covers everything"):
        edit_masks(mask, TASKS[0], 0.5)
    edit_masks(mask, "add an object", 0.5)


def test_task_names_are_for_ever():
    """Saved workflows hold them, in this order of menus."""
    first = ("replace or recolour", "edit, keep the object", "change the background", "remove the object")
    assert (*first, "add an object", "edit a part or region") == TASKS


def test_masks_of_a_wrong_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 3, 8, 8\)"):
        edit_masks(torch.ones(1, 3, 8, 8), TASKS[0], 0.1)


@pytest.mark.parametrize("shape", [(32, 48), (2, 32, 48), (2, 1, 32, 48), (2, 32, 48, 1)])
def test_masks_of_other_packs(shape):
    """Without a batch, with one, and with the channel that segmentation nodes leave; soft ones are cut at a half."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    found = as_mask(mask, "mask")
    assert found.shape == (1 if len(shape) == 2 else 2, 32, 48) and found.dtype == torch.bool
    assert torch.equal(found.flatten(), mask.flatten() > 0.5)


@pytest.mark.parametrize("size", [(512, 768), (515, 775), (1024, 1536), (64, 96), (128, 193), (16, 24), (8, 12)])
def test_a_mask_of_the_images_shape_has_any_size(size):
    """The image's own size, what VAE Encode rounds off, another resolution, or a map of a layer."""
    assert check_aspect(torch.ones(1, *size), (64, 96), "mask") is None  # refuses nothing
    assert check_aspect(torch.ones(1, 17, 24), (65, 96), "mask") is None  # a layer's map of an odd latent


@pytest.mark.parametrize("size", [(768, 512), (512, 512), (512, 1024), (64, 64), (512, 700)])
def test_a_mask_of_another_picture_is_refused(size):
    with pytest.raises(ValueError, match=f"The thing is {size[1]}x{size[0]}.*768x512"):
        check_aspect(torch.ones(1, *size), (64, 96), "thing")


@pytest.mark.parametrize("make", [lambda m: CPAM(edits.masks(m)), ExactBackground])
def test_a_mask_of_another_picture_stops_the_run_before_it_starts(make, model, inversion):
    wide = torch.zeros(1, 64, 128, dtype=torch.bool)
    wide[:, 20:40, 20:40] = True
    with pytest.raises(ValueError, match=r"128x64.*128x128.*another shape"):
        edits.run(model, inversion, make(wide))


def test_a_mask_of_another_size_is_the_same_edit(model, inversion):
    """Twice as fine, and the nearest cell is the same."""
    fine = edits.box().repeat_interleave(2, 1).repeat_interleave(2, 2)
    results = [edits.run(model, inversion, CPAM(edits.masks(m), normal_share=0.0)) for m in (edits.box(), fine)]
    assert torch.equal(*results)


def test_a_batch_of_masks_that_does_not_fit_is_an_error(model, inversion):
    three = edits.masks(edits.box().expand(3, -1, -1))
    with pytest.raises(ValueError, match="3 masks, but there are 2 images"):
        edits.run(model, inversion, CPAM(three, normal_share=0.0), batch=2)


def test_each_mask_grows_by_its_own_size():
    """CPAM's kernel is a share of the square root of a mask's area, in a batch as alone; none is no change."""
    small, large = edits.box(24, 24, 20, 20), edits.box(24, 24, 80, 80)
    both = edit_masks(torch.cat([small, large]).float(), "replace or recolour", 0.2).target
    for mask, found in zip((small, large), both, strict=True):
        assert torch.equal(found[None], edit_masks(mask.float(), "replace or recolour", 0.2).target)
    assert int(both[0].sum()) == 24**2 and int(both[1].sum()) == 96**2
    assert torch.equal(edit_masks(small.float(), "replace or recolour", 0.001).target, small)


def test_a_new_background_leaves_every_pixel_of_the_object():
    """The released code's 0.001 of the object's size, which is nothing."""
    made = edit_masks(edits.box().float(), "change the background", 0.3)
    assert torch.equal(made.target, ~edits.box()) and torch.equal(made.changed, ~edits.box())


def test_dilation_is_symmetric_and_can_shrink():
    point = torch.zeros(1, 9, 9, dtype=torch.bool)
    point[0, 4, 4] = True
    grown = dilate(point, 2)
    assert grown[0, 2:7, 2:7].all() and int(grown.sum()) == 25
    assert torch.equal(dilate(grown, -2), point) and torch.equal(dilate(point, 0), point)


@pytest.mark.parametrize("radius", [-5, -1, 1, 2, 9, 40])
def test_growing_and_distances_are_those_of_the_plain_square(radius):
    """By the definition: a maximum over (2 r + 1)^2 pixels."""
    mask = (
        torch.rand(3, 65, 97, generator=torch.Generator().manual_seed(1))
        > torch.tensor([0.5, 0.97, 0.9995])[:, None, None]
    )
    x = mask[:, None].float() if radius > 0 else 1 - mask[:, None].float()
    side = 2 * abs(radius) + 1
    pooled = F.max_pool2d(F.pad(x, [abs(radius)] * 4), side, stride=1)[:, 0] > 0.5
    assert torch.equal(dilate(mask, radius), pooled if radius > 0 else ~pooled)
    near = distance(mask if radius > 0 else ~mask) <= abs(radius)
    assert torch.equal(near, pooled)
    assert int(distance(torch.zeros(1, 5, 9, dtype=torch.bool)).min()) > 14


def test_edit_masks_of_a_large_photograph_take_no_minutes():
    """4000 x 2667 pixels, grown by 0.3 of the object's size: 81 s for a picture of 1600 with a square window."""
    mask = torch.zeros(1, 2667, 4000)
    mask[:, 500:2200, 800:3200] = 1
    begun = time.process_time()
    found = edit_masks(mask, TASKS[0], 0.3).target
    weight = composite(torch.zeros(1, 2667, 4000, 1), torch.ones(1, 2664, 4000, 1), found, 256)
    assert time.process_time() - begun < 30
    reach = int((1700 * 2400) ** 0.5 * 0.3) // 2
    assert int(found.sum()) == (1700 + 2 * reach) * (2400 + 2 * reach)
    assert float(weight[0, 1000, 800 - reach - 128]) == pytest.approx(1 - 128 / 257)


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (16, 16), (64, 48)])
def test_resize_never_loses_a_mask(size):
    for rule in ("nearest", "majority", "any"):
        assert resize(edits.box(3, 5, 1, 1), size, rule).any()
        assert not resize(edits.NONE, size, rule).any()
        assert resize(edits.ALL, size, rule).all()


# The composite.


def pictures(*sizes):
    rng = torch.Generator().manual_seed(3)
    return [torch.rand(*size, 3, generator=rng) for size in sizes]


@pytest.mark.parametrize("feather", [0, 1, 8, 30])
def test_composite_is_exact_on_both_sides(feather):
    """The edit inside the mask, the original further than the feather away, and between them a fade."""
    original, edited = pictures((1, 128, 128), (1, 128, 128))
    out = composite(original, edited, edits.box(), feather)
    inside, grown = edits.box(), dilate(edits.box(), feather)
    assert torch.equal(out[inside], edited[inside])
    assert torch.equal(out[~grown], original[~grown])
    rim = grown & ~inside
    assert (out[rim] != original[rim]).any(-1).all() and (out[rim] != edited[rim]).any(-1).all()


def test_composite_with_an_empty_mask_is_refused():
    """It would give back the photograph, as if the edit had failed in silence."""
    original, edited = pictures((1, 128, 128), (2, 128, 128))
    with pytest.raises(ValueError, match=r"Connect a mask .* selects no pixel"):
        composite(original, edited, edits.NONE, 8)
    with pytest.raises(ValueError, match="mask 2 of 2"):
        composite(original, edited, torch.cat([edits.box(), edits.NONE]), 8)


def test_composite_fades_evenly():
    black, white = torch.zeros(1, 1, 64, 3), torch.ones(1, 1, 64, 3)
    mask = torch.zeros(1, 1, 64, dtype=torch.bool)
    mask[..., :20] = True
    row = composite(black, white, mask, 3)[0, 0, :, 0]
    assert torch.allclose(row[18:25], torch.tensor([1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]))


@pytest.mark.parametrize("on_edited", [False, True])
def test_composite_of_what_the_encoder_cropped(on_edited):
    """131x142 is encoded as its middle 128x136, as the host's VAE crops it; the rim stays."""
    (original,) = pictures((1, 131, 142))
    cropped = original[:, 1:129, 3:139]
    mask = torch.zeros(1, 128, 136, dtype=torch.bool)
    mask[:, 40:80, 40:80] = True
    given = mask
    if not on_edited:
        given = torch.zeros(1, 131, 142, dtype=torch.bool)
        given[:, 1:129, 3:139] = mask
    assert torch.equal(composite(original, cropped, given, 8), original)
    out = composite(original, 1 - cropped, given, 0)
    assert torch.equal(out[:, 1:129, 3:139][mask], 1 - cropped[mask])
    assert int((out != original).any(-1).sum()) == 1600


def test_the_encoder_crops_as_the_composite_thinks():
    """The host's own function, without weights."""
    import comfy.sd

    vae = object.__new__(comfy.sd.VAE)
    vae.crop_input, vae.output_channels, vae.downscale_ratio = True, 3, 8
    (original,) = pictures((1, 131, 142))
    cropped = vae.vae_encode_crop_pixels(original)
    everything = torch.ones(1, 131, 142, dtype=torch.bool)
    assert torch.equal(composite(original, cropped, everything, 0), original)


@pytest.mark.parametrize("size", [(1, 128, 120), (1, 64, 64), (1, 256, 256)])
def test_composite_of_another_size_is_refused(size):
    original, edited = pictures((1, 128, 128), size)
    with pytest.raises(ValueError, match=f"{size[2]}x{size[1]}.*128x128.*multiples of 8"):
        composite(original, edited, edits.box(), 8)


def test_composite_of_batches():
    """One original under many edits, masks for each; what fits nowhere is refused."""
    original, edited = pictures((1, 128, 128), (2, 128, 128))
    masks = torch.cat([edits.box(), edits.box(64, 64, 32, 48)])
    both = composite(original, edited, masks, 4)
    for i in range(2):
        assert torch.equal(both[i : i + 1], composite(original, edited[i : i + 1], masks[i : i + 1], 4))
    (three,) = pictures((3, 128, 128))
    with pytest.raises(ValueError, match="edited image is a batch of 2 where 3 are needed"):
        composite(three, edited, edits.box(), 4)


def test_composite_takes_a_coarse_mask_and_drops_transparency():
    original, edited = pictures((1, 128, 128), (1, 128, 128))
    coarse = torch.zeros(1, 16, 16, dtype=torch.bool)
    coarse[:, 4, 5] = True
    out = composite(torch.cat([original, original[..., :1]], -1), edited, coarse, 0)
    assert out.shape == (1, 128, 128, 3)
    assert torch.equal(out[:, 32:40, 40:48], edited[:, 32:40, 40:48])
    assert int((out != original).any(-1).sum()) == 64
    with pytest.raises(ValueError, match="another shape"):
        composite(original, edited, torch.ones(1, 16, 32, dtype=torch.bool), 0)
