"""Pictures of attention maps: each pixel where it belongs, in the size that was promised."""

from __future__ import annotations

import pytest
import torch
from attention_edit.attention.pictures import heat as map_pictures


def test_heat_goes_from_dark_to_bright() -> None:
    heat = torch.linspace(0, 1, 50)[None]
    colours = map_pictures.heat_colours(heat)
    assert colours.shape == (1, 50, 3)
    assert torch.allclose(colours[0, [0, -1]], torch.tensor([map_pictures.HEAT[0], map_pictures.HEAT[-1]]))
    brightness = colours[0] @ torch.tensor([0.3, 0.6, 0.1])
    assert (brightness.diff() > 0).all()


def test_overlay_is_the_image_where_it_is_clear() -> None:
    image = torch.rand(16, 24, 3, generator=torch.Generator().manual_seed(0))
    heat = torch.zeros(4, 6)
    heat[0, 0] = 1
    assert torch.equal(map_pictures.overlay(image, heat, 0.0), image)
    full = map_pictures.overlay(image, heat, 1.0)
    assert torch.allclose(full[0, 0], torch.tensor(map_pictures.HEAT[-1]))
    assert torch.allclose(full[-1, -1], torch.tensor(map_pictures.HEAT[0]))


def test_grids_show_every_word_over_every_image() -> None:
    images = torch.zeros(2, 256, 256, 3)
    heats = {word: torch.zeros(2, 8, 8) for word in ("one", "two", "three")}
    for place, word in enumerate(heats):
        heats[word][:, 0, 0] = 1 + place
    grids = map_pictures.heat_grids(images, heats, 1.0, common=False)
    assert len(grids) == 2 and torch.equal(grids[0], grids[1])
    # The hottest colour three times: in each tile's own corner.
    hot = (grids[0] - torch.tensor(map_pictures.HEAT[-1])).abs().amax(-1) < 0.01
    columns, rows = hot.any(0).nonzero()[:, 0], hot.any(1).nonzero()[:, 0]
    assert len(columns) % 2 == 0 and columns.diff().max() > 200 and rows.diff().max() > 200
    common = map_pictures.heat_grids(images, heats, 1.0, common=True)
    assert 0 < (abs(common[0] - torch.tensor(map_pictures.HEAT[-1])).amax(-1) < 0.01).sum() < hot.sum()


def test_one_image_goes_with_a_batch_of_maps() -> None:
    heats = {"one": torch.rand(3, 4, 4)}
    assert len(map_pictures.heat_grids(torch.zeros(1, 32, 32, 3), heats, 0.5, common=False)) == 3
    with pytest.raises(ValueError, match="2 images and maps of 3"):
        map_pictures.heat_grids(torch.zeros(2, 32, 32, 3), heats, 0.5, common=False)
    with pytest.raises(ValueError, match="the prompt is empty"):
        map_pictures.heat_grids(torch.zeros(1, 32, 32, 3), {}, 0.5, common=False)


def test_small_pictures_are_enlarged() -> None:
    grid = map_pictures.label_grid({"word": torch.zeros(32, 64, 3)})
    assert grid.shape[1] >= 256 and grid.shape[0] >= 128


def test_cluster_colours_are_told_apart() -> None:
    colours = map_pictures.distinct_colours(20)
    assert colours.min() >= 0 and colours.max() <= 1
    assert torch.pdist(colours).min() > 0.05
    labels = torch.tensor([[0, 1], [2, 1]])
    picture = map_pictures.cluster_picture(labels, (256, 256), ["1", "2", "3"])
    for i, (x, y) in enumerate(((10, 10), (200, 10), (10, 200))):
        assert torch.allclose(picture[y, x], colours[i], atol=1 / 255)
