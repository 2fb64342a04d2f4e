"""Clusters, components and regions of self-attention maps that are known."""

from __future__ import annotations

import pytest
import torch
from attention_edit.attention.maps import clusters
from attention_edit.attention.maps.recorder import MeanMap, Recording
from attention_edit.attention.maps.segments import find_segments, segment_numbers
from torch import Tensor

SIDE = 8


def blobs(sizes: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points (N, 5) around distant centres, mixed up, and which centre each is from."""
    rng = torch.Generator().manual_seed(seed)
    label = torch.cat([torch.full((size,), i) for i, size in enumerate(sizes)])
    label = label[torch.randperm(len(label), generator=rng)]
    centres = torch.randn(len(sizes), 5, generator=rng) * 20
    return centres[label] + torch.randn(len(label), 5, generator=rng), label


def spread(points: Tensor, labels: Tensor) -> float:
    """Sum of squared distances to the centres of the clusters."""
    return sum(float((part - part.mean(0)).square().sum()) for i in labels.unique() for part in [points[labels == i]])


def test_k_means_finds_distant_groups_and_numbers_them_by_size() -> None:
    for seed in range(5):
        points, label = blobs((10, 40, 25, 60), seed)
        by_size = torch.tensor([3, 1, 2, 0])
        assert torch.equal(clusters.k_means(points, 4), by_size[label])


def test_k_means_settles_where_no_single_point_wants_to_move() -> None:
    points = torch.randn(200, 3, generator=torch.Generator().manual_seed(3))
    labels = clusters.k_means(points, 5)
    centres = torch.stack([points[labels == i].mean(0) for i in range(5)])
    assert torch.equal(torch.cdist(points, centres).argmin(1), labels)


def test_more_restarts_are_no_worse_and_a_seed_is_a_result() -> None:
    points = torch.randn(150, 2, generator=torch.Generator().manual_seed(4))
    values = [spread(points, clusters.k_means(points, 6, restarts)) for restarts in (1, 10, 30)]
    assert values[0] >= values[1] >= values[2]
    assert torch.equal(clusters.k_means(points, 6, seed=5), clusters.k_means(points, 6, seed=5))


def test_k_means_of_equal_points() -> None:
    assert clusters.k_means(torch.ones(6, 2), 3).unique().tolist() == [0]
    with pytest.raises(ValueError, match="3 points cannot be cut into 4"):
        clusters.k_means(torch.ones(3, 2), 4)


def test_principal_components_are_those_of_a_full_decomposition() -> None:
    rng = torch.Generator().manual_seed(6)
    points = torch.randn(300, 20, generator=rng) * torch.tensor([9.0, 5.0, 3.0] + [0.5] * 17)
    found = clusters.principal_components(points)
    centred = (points - points.mean(0)).double()
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    exact = (u * s)[:, :3]
    assert found.shape == (300, 3)
    assert (found.amin(0).tolist(), found.amax(0).tolist()) == ([0] * 3, [1] * 3)
    for i in range(3):
        assert abs(float(torch.corrcoef(torch.stack([found[:, i].double(), exact[:, i]]))[0, 1])) > 1 - 1e-6
    assert clusters.principal_components(torch.ones(4, 2)).isfinite().all()


def test_assignment_to_nouns_and_background() -> None:
    labels = torch.tensor([0] * 6 + [1] * 3 + [2] * 3)
    cat = torch.cat([torch.zeros(6), torch.ones(3), torch.zeros(3)]) * 0.4 + 0.1
    dog = torch.cat([torch.zeros(9), torch.ones(3)]) * 0.2
    assert clusters.assign(labels, 3, {"cat": cat, "dog": dog}) == [None, "cat", "dog"]
    # (m - min) / max of the cat's map is 0.4 / 0.5 on its cluster.
    assert clusters.assign(labels, 3, {"cat": cat}, least=0.79) == [None, "cat", None]
    assert clusters.assign(labels, 3, {"cat": cat}, least=0.81) == [None, None, None]


def two_objects() -> tuple[Recording, Tensor]:
    """Self-attention within three parts of the image, and cross maps of a word for each object."""
    labels = torch.zeros(SIDE, SIDE, dtype=torch.long)
    labels[1:4, 1:5] = 1
    labels[5:7, 5:7] = 2
    flat = labels.flatten()
    own = (flat[:, None] == flat).float()
    own = own / own.sum(1, keepdim=True)
    half = torch.stack([(labels == i)[::2, ::2].flatten().float() * 0.3 for i in (1, 2)], dim=-1)
    cross = {2: MeanMap(half[None], (SIDE // 2, SIDE // 2), 5)}
    return Recording((3, 7), cross, {1: MeanMap(own[None], (SIDE, SIDE), 5)}, (SIDE, SIDE)), labels


def test_regions_are_named_and_masked() -> None:
    found, labels = two_objects()
    (segments,) = find_segments(found, 3, {"cat": (3,), "dog": (7,)})
    assert torch.equal(segments.labels, labels)
    assert segments.words == (None, "cat", "dog")
    pixels = labels.repeat_interleave(8, 0).repeat_interleave(8, 1)
    assert torch.equal(segments.mask([1, 2]), pixels > 0)
    assert torch.equal(segments.background(), pixels == 0)
    assert not segments.mask([]).any()
    assert segments.report().splitlines() == ["1: background 75 %", "2: cat 19 %", "3: dog 6 %"]
    assert segments.components().shape == (*pixels.shape, 3)
    assert segments.picture().shape[1:] == (256, 3) and segments.picture().shape[0] > 256


def test_regions_without_words() -> None:
    found, _ = two_objects()
    (segments,) = find_segments(found, 3, {})
    assert not segments.background().any()
    assert segments.report().startswith("1: 75 %")
    with pytest.raises(ValueError, match="Choose a size for self_maps"):
        find_segments(Recording((), {}, {}, (8, 8)), 3, {})


def test_regions_are_chosen_by_their_words() -> None:
    words = ("red square", None, "cross", "cross")
    assert segment_numbers("cross, 1", 4, words) == [2, 3, 0]
    assert segment_numbers("red square", 4, words) == [0]
    with pytest.raises(ValueError, match=r"'red square', 'cross'.*'circle' was given"):
        segment_numbers("circle", 4, words)


def test_numbers() -> None:
    assert segment_numbers("1, 3 5", 5) == [0, 2, 4]
    assert segment_numbers("", 5) == []
    for wrong in ("0", "6", "one", "-1"):
        with pytest.raises(ValueError, match="numbers from 1 to 5"):
            segment_numbers(wrong, 5)
