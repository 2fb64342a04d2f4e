"""Image measures against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from scenes import metrics


def test_equal_images_are_infinitely_near() -> None:
    image = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert metrics.psnr(image, image.clone()).tolist() == [math.inf] * 3
    assert metrics.mean_psnr(image, image) == 60.0


@pytest.mark.parametrize(("difference", "decibel"), [(1.0, 0.0), (0.1, 20.0), (0.01, 40.0), (1 / 255, 48.1308)])
def test_known_values(difference: float, decibel: float) -> None:
    reference = torch.zeros(2, 3, 5, 7, dtype=torch.float64)
    values = metrics.psnr(reference + difference, reference)
    assert values.tolist() == pytest.approx([decibel] * 2, abs=1e-3)


def test_only_weighted_pixels_count() -> None:
    reference = torch.zeros(1, 3, 4, 4)
    image = reference.clone()
    image[..., :2] = 0.1
    left = torch.zeros(1, 1, 4, 4)
    left[..., :2] = 1
    assert metrics.psnr(image, reference, left).item() == pytest.approx(20.0, abs=1e-4)
    assert metrics.psnr(image, reference, 1 - left).item() == math.inf
    assert metrics.psnr(image, reference).item() == pytest.approx(20 + 10 * math.log10(2), abs=1e-4)
    # Three quarters of the weight on the left.
    weight = torch.where(left > 0, 3.0, 1.0)
    assert metrics.mean_square(image, reference, weight).item() == pytest.approx(0.0075)


def test_each_image_has_its_own_value() -> None:
    reference = torch.zeros(2, 3, 4, 4)
    image = torch.stack([reference[0] + 0.1, reference[1] + 0.01])
    assert metrics.psnr(image, reference).tolist() == pytest.approx([20.0, 40.0], abs=1e-4)
    assert metrics.mean_psnr(image, reference) == pytest.approx(30.0, abs=1e-4)


def test_images_without_weight_are_left_out() -> None:
    reference = torch.zeros(2, 3, 4, 4)
    weight = torch.zeros(2, 1, 4, 4)
    assert math.isnan(metrics.mean_psnr(reference + 0.1, reference, weight))
    weight[1] = 1
    assert metrics.mean_psnr(reference + 0.1, reference, weight) == pytest.approx(20.0, abs=1e-4)


def test_dilate_and_erode() -> None:
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 7, 7] = 1
    grown = metrics.dilate(mask, 3)
    assert grown.sum() == 49
    assert grown[0, 0, 4, 10] == 1
    assert grown[0, 0, 3, 7] == 0
    assert torch.equal(metrics.erode(grown, 3), mask)
    assert torch.equal(metrics.dilate(mask, 0), mask)
    assert metrics.erode(torch.ones(1, 1, 6, 6), 2).sum() == 36


def test_overlap() -> None:
    a = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    b = torch.tensor([[1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    assert metrics.overlap(a, b).tolist() == pytest.approx([1 / 3, 1.0])
