"""The automatic reader names what rendered scenes show, and does not name what they do not show."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
import pytest
import torch
from bundle import world
from PIL import Image
from scenes import reader
from scipy import ndimage

Thing = tuple[int, int]


@lru_cache(maxsize=1)
def scenes() -> tuple[world.Scenes, torch.Tensor]:
    """300 scenes, half of them with two objects, and their images."""
    drawn = world.sample_scenes(300, 71)
    return drawn, world.render(drawn)


def things(drawn: world.Scenes, index: int) -> list[Thing]:
    """Shape and colour of the objects that are in a scene."""
    pairs = zip(drawn.shape[index].tolist(), drawn.colour[index].tolist(), strict=True)
    return [(shape, colour) for shape, colour in pairs if shape != world.NOTHING]


def next_shape(drawn: world.Scenes) -> torch.Tensor:
    """Other shapes (B,) than those of the objects in slot 0."""
    return (drawn.shape[:, 0] + 1) % len(world.SHAPES)


def next_colour(drawn: world.Scenes) -> torch.Tensor:
    """Other colours (B,) than those of the objects in slot 0."""
    return (drawn.colour[:, 0] + 1) % len(world.COLOURS)


def scores(drawn: world.Scenes, readings: list[reader.Reading]) -> tuple[float, float, int]:
    """Share of objects found, share of backgrounds right, and the number of things that are not there."""
    found, there, grounds, invented = 0, 0, 0, 0
    for index, reading in enumerate(readings):
        seen = [(thing.shape, thing.colour) for thing in reading.objects]
        wanted = things(drawn, index)
        there += len(wanted)
        found += sum(thing in seen for thing in wanted)
        invented += sum(thing not in wanted for thing in seen)
        grounds += reading.background == int(drawn.background[index])
    return found / there, grounds / len(readings), invented


def degrade(images: torch.Tensor, blur: float, quality: int) -> np.ndarray:
    """Images (B, 3, H, W) after a Gaussian blur in pixels and JPEG compression."""
    results = []
    for image in images.numpy():
        soft = ndimage.gaussian_filter(image, (0, blur, blur)).transpose(1, 2, 0)
        file = io.BytesIO()
        Image.fromarray((soft * 255).round().astype(np.uint8)).save(file, "JPEG", quality=quality)
        results.append(np.asarray(Image.open(file)).transpose(2, 0, 1) / 255)
    return np.stack(results)


def test_reads_rendered_scenes() -> None:
    drawn, images = scenes()
    objects, grounds, invented = scores(drawn, reader.read_all(images))
    assert objects >= 0.99
    assert grounds >= 0.99
    assert invented <= 3


def test_reads_blurred_and_compressed_scenes() -> None:
    drawn, images = scenes()
    objects, grounds, invented = scores(drawn, reader.read_all(degrade(images, 1.5, 50)))
    assert objects >= 0.97
    assert grounds >= 0.97
    assert invented <= 9


def test_empty_scenes_have_no_object() -> None:
    empty = world.sample_scenes(150, 72, empty_share=1.0)
    readings = reader.read_all(world.render(empty))
    assert sum(len(reading.objects) for reading in readings) == 0
    right = [reading.background == int(b) for reading, b in zip(readings, empty.background, strict=True)]
    assert np.mean(right) >= 0.99


@pytest.mark.parametrize("colour", range(len(world.COLOURS)))
@pytest.mark.parametrize("background", range(len(world.BACKGROUNDS)))
def test_every_colour_on_every_background(colour: int, background: int) -> None:
    shapes = torch.arange(len(world.SHAPES))
    drawn = world.sample_scenes(len(shapes), 73, objects=1)
    drawn = drawn.with_object(0, shapes, torch.full_like(shapes, colour))
    drawn = drawn.with_background(torch.full_like(shapes, background))
    for shape, reading in enumerate(reader.read_all(world.render(drawn))):
        assert [(thing.shape, thing.colour) for thing in reading.objects] == [(shape, colour)]
        assert reading.background == background


def test_wrong_drawings_are_read_as_wrong() -> None:
    drawn, _ = scenes()
    drawn = drawn[:60]
    other = drawn.with_object(0, next_shape(drawn), next_colour(drawn))
    other = other.with_background((drawn.background + 1) % len(world.BACKGROUNDS))
    readings = reader.read_all(world.render(other))
    for index, reading in enumerate(readings):
        seen = [(thing.shape, thing.colour) for thing in reading.objects]
        assert reading.background != int(drawn.background[index])
        assert seen.count(things(drawn, index)[0]) == things(other, index)[1:].count(things(drawn, index)[0])


def test_what_is_no_shape_gets_no_name() -> None:
    y, x = np.mgrid[:256, :256]
    crescent = ((x - 128) ** 2 + (y - 128) ** 2 < 50**2) & ((x - 160) ** 2 + (y - 128) ** 2 > 45**2)
    bar = (abs(x - 128) < 70) & (abs(y - 128) < 14)
    ring = abs(np.hypot(x - 128, y - 128) - 45) < 8
    for mask in (crescent, bar, ring):
        image = np.full((3, 256, 256), 0.5)
        image[:, mask] = np.array([[0.82], [0.1], [0.1]])
        (thing,) = reader.read(image).objects
        assert thing.shape == world.NOTHING
        assert world.COLOURS[thing.colour] == "red"


def test_a_ground_of_no_background_colour_gets_no_name() -> None:
    image = torch.tensor([0.1, 0.9, 0.1])[:, None, None].expand(3, 128, 128)
    assert reader.read(image).background == world.NOTHING


def test_mask_and_centre_are_the_object_s() -> None:
    drawn, images = scenes()
    truth = world.masks(drawn).bool().numpy()
    for index in range(20):
        for slot in range(len(things(drawn, index))):
            thing = reader.read_inside(images[index], truth[index, slot])
            assert thing is not None
            assert (thing.shape, thing.colour) == things(drawn, index)[slot]
            both = (thing.mask & truth[index, slot]).sum()
            assert both / (thing.mask | truth[index, slot]).sum() > 0.93


def test_inside_and_outside_of_a_region() -> None:
    drawn = world.sample_scenes(20, 74, objects=2)
    images, truth = world.render(drawn), world.masks(drawn)
    gone = world.render(drawn.without_object(0))
    for index in range(20):
        region = truth[index, 0]
        assert reader.read_inside(gone[index], region) is None
        assert reader.ground_inside(gone[index], region) == int(drawn.background[index])
        kept = reader.read_inside(gone[index], truth[index, 1])
        assert kept is not None
        assert (kept.shape, kept.colour) == things(drawn, index)[1]
    recoloured = drawn.with_object(0, colour=next_colour(drawn))
    thing = reader.read_inside(world.render(recoloured)[0], truth[0, 0])
    assert thing is not None
    assert thing.colour == int(recoloured.colour[0, 0])
    assert reader.read_inside(images[0], 1 - truth[0].amax(0)) is None


def test_other_sizes() -> None:
    drawn, images = scenes()
    other = torch.nn.functional.interpolate(images[:40], size=(192, 160), mode="bilinear")
    # Squeezed shapes are other shapes; colours and grounds stay what they are.
    for index, reading in enumerate(reader.read_all(other)):
        assert sorted(t.colour for t in reading.objects) == sorted(c for _, c in things(drawn, index))
        assert reading.background == int(drawn.background[index])
