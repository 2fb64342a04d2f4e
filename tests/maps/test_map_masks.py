"""Masks from attention maps whose answer is known."""

from __future__ import annotations

import edits
import pytest
import torch
from attention_edit.attention.maps import heat as map_masks
from attention_edit.attention.maps.heat import DEFAULT_HEAT, HeatOptions
from attention_edit.attention.maps.recorder import MeanMap, Recording
from attention_edit.host.models import CELL
from torch import Tensor

SIDE = 16
PROMPT = edits.words("a red car and a blue car")
PLAIN = HeatOptions(smoothing=0.0)


def box(top: int, left: int, height: int, width: int, side: int = SIDE) -> Tensor:
    """(side, side) bool."""
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[top : top + height, left : left + width] = True
    return mask


OBJECT = box(4, 6, 8, 4)


def recording(masks: dict[int, Tensor], own: Tensor | None = None, batch: int = 1, side: int = SIDE) -> Recording:
    """Maps that are 0.3 where a token's mask is and 0.02 elsewhere, with a little noise; layers of one size."""
    rng = torch.Generator().manual_seed(0)
    values = torch.rand(batch, side * side, len(PROMPT.content), generator=rng) * 0.02
    for position, mask in masks.items():
        values[..., PROMPT.content.index(position)] += 0.3 * mask.flatten()
    owned = {} if own is None else {1: MeanMap(own[None].expand(batch, -1, -1), (side, side), 5)}
    return Recording(PROMPT.content, {1: MeanMap(values, (side, side), 5)}, owned, (SIDE, SIDE))


def enlarged(mask: Tensor) -> Tensor:
    return mask.repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)


def overlap(a: Tensor, b: Tensor) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("rule", map_masks.MASK_RULES)
def test_finds_the_object(rule: str) -> None:
    """Up to the half cell at the border by which a bilinear map is enlarged."""
    found = recording({2: OBJECT}, batch=2)
    share = float(OBJECT.float().mean())
    mask, heat = map_masks.words_mask(found, {"red": (2,)}, rule, 0.45, share, PLAIN)
    assert mask.shape == heat.shape == (2, SIDE * 8, SIDE * 8)
    assert (float(heat.min()), float(heat.max())) == (0, 1)
    assert all(overlap(m, enlarged(OBJECT)) > 0.9 for m in mask)


def test_joins_words_and_means_over_the_tokens_of_one() -> None:
    other = box(0, 0, 3, 3)
    found = recording({2: OBJECT, 3: other})
    both, _ = map_masks.words_mask(found, {"red": (2,), "car": (3,)}, "threshold", options=PLAIN)
    assert overlap(both[0], enlarged(OBJECT | other)) > 0.9
    phrase = map_masks.heat_map(found, (2, 3), PLAIN)
    alone = [map_masks.heat_map(found, (position,), PLAIN) for position in (2, 3)]
    assert torch.allclose(phrase, (alone[0] + alone[1]) / 2, atol=1e-6)


def test_largest_share_selects_that_share() -> None:
    heat = torch.rand(2, 40, 50, generator=torch.Generator().manual_seed(1))
    for share in (0.01, 0.2, 1.0):
        mask = map_masks.mask_of_heat(heat, "largest share", share=share)
        assert mask.flatten(1).sum(1).tolist() == [round(share * 2000)] * 2
        assert all(h[m].min() > h[~m].max() for h, m in zip(heat, mask, strict=True) if not m.all())


def within(values: Tensor, cut: float) -> float:
    """Sum of squared deviations from the means of the values below and above a cut."""
    return sum(float(len(part) * part.var(correction=0)) for part in (values[values <= cut], values[values > cut]))


def test_otsu_is_the_best_cut() -> None:
    """On values at the centres of the histogram's bins, where no rounding stands between."""
    rng = torch.Generator().manual_seed(2)
    for _ in range(5):
        cells = torch.cat([torch.randint(0, 140, (300,), generator=rng), torch.randint(90, 256, (100,), generator=rng)])
        values = (cells.double() + 0.5) / 256
        cut = float(map_masks.otsu(values[None, None])[0])
        best = min(within(values, float(other)) for other in values.unique()[:-1])
        assert within(values, cut) == pytest.approx(best, rel=1e-9)


def test_otsu_cuts_in_the_middle_of_a_gap() -> None:
    heat = torch.where(OBJECT, 0.8, 0.2)[None]
    assert float(map_masks.otsu(heat)[0]) == pytest.approx(0.5, abs=1 / 128)


def test_sharpening_fills_the_region_of_the_self_map() -> None:
    """A word that sees one corner of an object whose cells all look at each other."""
    inside = OBJECT.flatten().float()
    same = inside[:, None] * inside + (1 - inside[:, None]) * (1 - inside)
    own = same / same.sum(1, keepdim=True)
    found = recording({2: box(4, 6, 2, 2)}, own)
    before, _ = map_masks.words_mask(found, {"red": (2,)}, "Otsu", options=PLAIN)
    after, _ = map_masks.words_mask(found, {"red": (2,)}, "Otsu", options=HeatOptions(0.0, sharpen=1))
    assert overlap(before[0], enlarged(OBJECT)) < 0.3
    assert overlap(after[0], enlarged(OBJECT)) > 0.9
    low = map_masks.word_map(found, (2,))
    expected = (own @ own @ low.flatten()).unflatten(0, (SIDE, SIDE))
    assert torch.allclose(map_masks.sharpen(low, found.own[1], 2)[0], expected, atol=1e-6)


def test_sizes_are_weighed_by_their_layers() -> None:
    small, large = torch.full((1, 4, 1), 0.1), torch.full((1, 16, 1), 0.4)
    both = Recording((1,), {4: MeanMap(small, (2, 2), 5), 2: MeanMap(large, (4, 4), 10)}, {}, (8, 8))
    assert torch.allclose(map_masks.word_map(both, (1,)), torch.full((1, 4, 4), 0.3))
    assert torch.allclose(map_masks.word_map(both, (1,), (4,)), torch.full((1, 2, 2), 0.1))
    assert map_masks.heat_map(both, (1,)).shape == (1, 64, 64)


def test_smoothing() -> None:
    """It keeps a flat map and the sum of a peak, and spreads it by its deviation."""
    flat = torch.full((1, 9, 12), 0.25)
    assert torch.allclose(map_masks.smooth(flat, 1.5), flat)
    assert map_masks.smooth(flat, 0.0) is flat
    peak = torch.zeros(1, 41, 41)
    peak[0, 20, 20] = 1.0
    spread = map_masks.smooth(peak, 2.0)[0]
    place = torch.arange(41) - 20.0
    assert float(spread.sum()) == pytest.approx(1, abs=1e-5)
    assert float((spread.sum(0) * place**2).sum()) == pytest.approx(4, rel=0.02)
    assert torch.allclose(spread, spread.T) and torch.allclose(spread, spread.flip(0))


def test_min_max_of_a_flat_map_is_zero() -> None:
    assert torch.equal(map_masks.min_max(torch.full((1, 3, 3), 0.7)), torch.zeros(1, 3, 3))


def test_names() -> None:
    assert map_masks.phrases(" red car,\nblue , ,") == ["red car", "blue"]
    assert map_masks.named(PROMPT, "red car, car") == {"red car": (2, 3), "car": (3, 7)}
    assert map_masks.named(PROMPT, "car", 2) == {"car": (7,)}
    everything = map_masks.named(PROMPT, "")
    assert list(everything) == ["a", "red", "car", "and", "blue"]
    assert everything["a"] == (1, 5)
    with pytest.raises(ValueError, match="'green' is not in the prompt"):
        map_masks.named(PROMPT, "red, green")


def test_errors() -> None:
    found = recording({2: OBJECT})
    with pytest.raises(ValueError, match="of quarter size were recorded; there are full"):
        map_masks.heat_map(found, (2,), HeatOptions(scales=(4,)))
    with pytest.raises(ValueError, match="were recorded; there are none at all"):
        map_masks.heat_map(Recording((2,), {}, {}, (8, 8)), (2,))
    with pytest.raises(ValueError, match="Choose a size for self_maps"):
        map_masks.heat_map(found, (2,), HeatOptions(sharpen=1))
    with pytest.raises(ValueError, match=r"'red' selects nothing by the rule 'threshold'.*threshold 1 "):
        map_masks.words_mask(found, {"red": (2,)}, "threshold", threshold=1.0)
    with pytest.raises(ValueError, match="Unknown rule 'best'"):
        map_masks.words_mask(found, {"red": (2,)}, "best")
    with pytest.raises(ValueError, match="Name a word"):
        map_masks.words_mask(found, {}, "Otsu", options=DEFAULT_HEAT)
