"""Dynamic Prompt Learning's losses against their formulas written out in float64."""

from __future__ import annotations

import math

import pytest
import torch
from attention_edit.attention.methods.dpl.losses import (
    Losses,
    Term,
    attention,
    background,
    balancing,
    disjoint,
    noun_maps,
    smoothed,
)

SHAPE = (4, 5)
NOUNS = [(2,), (5, 6), (8,)]


def random_attention(length=77, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.softmax(2 * torch.randn(SHAPE[0] * SHAPE[1], length, dtype=torch.float64, generator=rng), dim=-1)


def cosine(a, b):
    a, b = [float(x) for x in a], [float(x) for x in b]
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def noun(a, places):
    return [sum(float(row[place]) for place in places) / len(places) for row in a]


def test_disjoint_is_the_cosine_of_pairs():
    a = random_attention()
    maps = [noun(a, places) for places in NOUNS]
    ordered = [cosine(maps[i], maps[j]) for i in range(3) for j in range(3) if i != j]
    assert float(disjoint(noun_maps(a, NOUNS), total=True)) == pytest.approx(sum(ordered), rel=1e-12)
    assert float(disjoint(noun_maps(a, NOUNS))) == pytest.approx(sum(ordered) / 6, rel=1e-12)


def test_background_is_the_cosine_with_the_mask():
    a, mask = random_attention(), torch.arange(SHAPE[0] * SHAPE[1]) % 3 == 0
    each = [cosine(noun(a, places), mask) for places in NOUNS]
    assert float(background(noun_maps(a, NOUNS), mask, total=True)) == pytest.approx(sum(each), rel=1e-12)
    assert float(background(noun_maps(a, NOUNS), mask)) == pytest.approx(sum(each) / 3, rel=1e-12)


def mirrored(index, count):
    return -index if index < 0 else 2 * (count - 1) - index if index >= count else index


def plain_balancing(a, nouns, left_out):
    """Softmax over the tokens, a Gaussian of 3 x 3 cells, and the weakest noun's best cell."""
    height, width = SHAPE
    worst = 0.0
    shares = []
    for row in a:
        powers = {place: math.exp(100 * float(value)) for place, value in enumerate(row) if place not in left_out}
        shares.append({place: value / sum(powers.values()) for place, value in powers.items()})
    line = [math.exp(-((x / (2 * 0.5)) ** 2)) for x in (-1, 0, 1)]
    for places in nouns:
        grid = [sum(cell[place] for place in places) / len(places) for cell in shares]
        best = max(
            sum(
                line[dy + 1] * line[dx + 1] * grid[mirrored(y + dy, height) * width + mirrored(x + dx, width)]
                for dy in (-1, 0, 1)
                for dx in (-1, 0, 1)
            )
            / sum(line) ** 2
            for y in range(height)
            for x in range(width)
        )
        worst = max(worst, 1 - best)
    return worst


@pytest.mark.parametrize(("length", "left_out"), [(77, (0, 76)), (154, (0, 76, 77, 153))])
def test_balancing_is_the_weakest_nouns_best_cell(length, left_out):
    a = random_attention(length)
    nouns = [*NOUNS, (100, 101)] if length > 77 else NOUNS
    assert float(balancing(a, nouns, SHAPE)) == pytest.approx(plain_balancing(a, nouns, left_out), rel=1e-10)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (4, 1)])
def test_smoothing_takes_maps_of_one_row_or_column(shape):
    """Tiny or long pictures: a side of one cell mirrors itself."""
    assert torch.allclose(smoothed(torch.full((2, *shape), 0.3)), torch.tensor(0.3))


def test_smoothing_keeps_a_flat_map_and_spreads_a_point():
    assert torch.allclose(smoothed(torch.full((2, *SHAPE), 0.3)), torch.tensor(0.3))
    point = torch.zeros(1, *SHAPE, dtype=torch.float64)
    point[0, 2, 2] = 1
    e = math.exp(-1)
    assert float(smoothed(point)[0, 1, 2]) == pytest.approx(e / (1 + 2 * e) ** 2)


def test_attention_is_the_mean_of_heads_and_layers():
    rng = torch.Generator().manual_seed(0)
    maps = {index: torch.rand(1, 8, 20, 77, generator=rng, dtype=torch.float64) for index in (4, 5, 7)}
    expected = sum(maps[index][0, head] for index in maps for head in range(8)) / 24
    assert torch.allclose(attention(maps), expected, rtol=1e-12)


def test_bounds_of_the_losses():
    """Between 0 and 1 on maps that are not negative; 0 exactly where nothing is shared."""
    a, losses = random_attention(), Losses()
    mask = torch.ones(SHAPE[0] * SHAPE[1])
    for value in losses(a, NOUNS, mask, SHAPE).values():
        assert 0 <= float(value) <= 1 + 1e-12
    apart = torch.zeros(20, 77, dtype=torch.float64)
    apart[:5, 2], apart[5:10, 5] = 1, 1
    found = losses(apart, [(2,), (5,)], torch.arange(20) >= 10, SHAPE)
    assert float(found["dj"]) == 0 and float(found["bg"]) == 0
    assert float(losses(apart, [(2,), (5,)], torch.arange(20) >= 9, SHAPE)["bg"]) > 0


def test_one_noun_has_the_background_alone():
    """The released mean over no pairs is not a number; the paper leaves both out."""
    a, mask = random_attention(), torch.arange(20) % 2 == 0
    found = Losses()(a, [(2,)], mask, SHAPE)
    assert list(found) == ["bg"] and math.isfinite(float(found["bg"]))
    assert float(Losses().weighed(found)) == pytest.approx(0.05 * cosine(noun(a, (2,)), mask))
    assert Losses()(a, [(2,)], None, SHAPE) == {}
    assert list(Losses()(a, NOUNS, None, SHAPE)) == ["at", "dj"]


def test_weights_and_thresholds_are_the_released_scripts():
    losses, a = Losses(), random_attention()
    found = losses(a, NOUNS, torch.arange(20) % 2 == 0, SHAPE)
    expected = float(found["at"]) + 0.05 * float(found["dj"]) + 0.05 * float(found["bg"])
    assert float(losses.weighed(found)) == pytest.approx(expected)
    assert [losses.term(name).bound(0) for name in ("at", "dj", "bg")] == [0.3, 0.9, 0.7]
    assert losses.bg.bound(50) == pytest.approx(0.7 / math.e) and losses.at.bound(25) == pytest.approx(0.3 / math.e)


def test_all_have_to_be_below():
    losses = Losses(at=Term(1, 0.5, 10), dj=Term(1, 0.5, 10), bg=Term(1, 0.5, 10))
    low, high = {"at": 0.1, "dj": 0.1, "bg": 0.1}, 0.49
    assert losses.content(low, 0)
    for name in low:
        assert losses.content({**low, name: high}, 0)
        assert not losses.content({**low, name: high}, 1)  # the threshold has come down
        assert not losses.content({**low, name: 0.5}, 0)


def test_gradients_reach_every_noun():
    leaf = random_attention().requires_grad_()
    losses = Losses()
    found = losses(leaf, NOUNS, torch.arange(20) % 2 == 0, SHAPE)
    (slope,) = torch.autograd.grad(losses.weighed(found), [leaf])
    assert all(float(slope[:, list(places)].abs().sum()) > 0 for places in NOUNS)
