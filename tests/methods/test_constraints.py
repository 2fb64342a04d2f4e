"""MAG-Edit's constraints: against plain loops and central differences in float64, and their bounds."""

from __future__ import annotations

import pytest
import torch
from attention_edit.attention.methods.mag import constraints
from attention_edit.attention.methods.mag.constraints import CONSTRAINTS, SPATIAL, TOKEN

BATCH, HEADS, PLACES, TEXT = 2, 3, 12, 7
WORDS = [(2,), (3, 4)]


def make_maps(count=2, places=PLACES, seed=0):
    """Maps with rows that do not sum to one, as after a rewrite of columns."""
    rng = torch.Generator().manual_seed(seed)
    return [torch.rand(BATCH, HEADS, places, TEXT, generator=rng, dtype=torch.float64) for _ in range(count)]


def make_masks(count=2, places=PLACES, rows=BATCH):
    mask = torch.zeros(rows, places, dtype=torch.bool)
    mask[:, 3:8] = True
    mask[0, 5] = False
    return [mask] * count


def loop_token_loss(maps, masks, image):
    """METHODS' definition, one number at a time."""
    total = 0.0
    for attention, mask in zip(maps, masks, strict=True):
        for word in WORDS:
            for head in range(HEADS):
                shares = []
                for place in range(attention.shape[2]):
                    if mask[image, place]:
                        row = attention[image, head, place].tolist()
                        shares.append(sum(row[t] for t in word) / len(word) / sum(row))
                total += (1 - sum(shares) / len(shares)) ** 2 / HEADS
    return total / len(maps) / len(WORDS)


def loop_spatial_loss(maps, masks, image):
    total = 0.0
    for attention, mask in zip(maps, masks, strict=True):
        for word in WORDS:
            for head in range(HEADS):
                weights = [sum(attention[image, head, p, t].item() for t in word) for p in range(attention.shape[2])]
                inside = sum(w for p, w in enumerate(weights) if mask[image, p])
                total += (3 - 4 * inside / sum(weights)) / HEADS
    return total / len(maps) / len(WORDS)


@pytest.mark.parametrize(("constraint", "loop"), [(TOKEN, loop_token_loss), (SPATIAL, loop_spatial_loss)])
def test_equals_a_plain_loop(constraint, loop):
    maps, masks = make_maps(), make_masks()
    loss, _ = constraints.evaluate(constraint, maps, masks, WORDS)
    expected = [loop(maps, masks, image) for image in range(BATCH)]
    assert loss.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("constraint", CONSTRAINTS.values(), ids=CONSTRAINTS)
def test_gradient_is_the_central_difference(constraint):
    maps, masks = make_maps(), make_masks()
    leaf = maps[0].requires_grad_()
    (gradient,) = torch.autograd.grad(constraints.evaluate(constraint, maps, masks, WORDS)[0].sum(), leaf)
    step = 1e-6
    for index in [(0, 0, 4, 2), (1, 2, 0, 3), (0, 1, 6, 5), (1, 1, 7, 4)]:
        values = []
        for sign in (1, -1):
            moved = maps[0].detach().clone()
            moved[index] += sign * step
            values.append(constraints.evaluate(constraint, [moved, maps[1]], masks, WORDS)[0].sum().item())
        difference = (values[0] - values[1]) / (2 * step)
        # Outside the mask the token ratio has no gradient at all: equal in absolute terms there.
        assert gradient[index].item() == pytest.approx(difference, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_bounds(seed):
    """0 <= L_TR <= 1 and -1 <= L_SR <= 3, for any non-negative maps."""
    maps = [torch.where(a > 0.5, a, 0.0) for a in make_maps(seed=seed)]
    for constraint, low, high in ((TOKEN, 0, 1), (SPATIAL, -1, 3)):
        loss, ratio = constraints.evaluate(constraint, maps, make_masks(), WORDS)
        assert bool(((loss >= low) & (loss <= high)).all())
        assert bool(((ratio >= 0) & (ratio <= 1)).all())


def test_bounds_are_reached():
    """All attention on the word and in the mask, and none of it."""
    best, worst = torch.zeros(1, 1, 4, 3), torch.zeros(1, 1, 4, 3)
    best[:, :, :2, 1], worst[:, :, 2:, 1] = 1.0, 1.0
    worst[:, :, :2, 0] = 1.0
    mask = torch.tensor([[True, True, False, False]])
    for constraint, low, high in ((TOKEN, 0.0, 1.0), (SPATIAL, -1.0, 3.0)):
        assert constraints.evaluate(constraint, [best], [mask], [(1,)])[0].item() == low
        assert constraints.evaluate(constraint, [worst], [mask], [(1,)])[0].item() == high


@pytest.mark.parametrize("constraint", CONSTRAINTS.values(), ids=CONSTRAINTS)
@pytest.mark.parametrize("factor", [0.25, 10.0])
def test_invariant_to_the_scale_of_the_map(constraint, factor):
    maps, masks = make_maps(), make_masks()
    loss, _ = constraints.evaluate(constraint, maps, masks, WORDS)
    scaled, _ = constraints.evaluate(constraint, [a * factor for a in maps], masks, WORDS)
    assert torch.allclose(scaled, loss, rtol=1e-12, atol=0)


def test_images_of_a_batch_are_apart():
    """One image's loss has no gradient into another's map, and one mask serves all."""
    maps, masks = make_maps(1), make_masks(1, rows=BATCH)
    leaf = maps[0].requires_grad_()
    loss, _ = constraints.evaluate(TOKEN, [leaf], masks, WORDS)
    (gradient,) = torch.autograd.grad(loss[0], leaf)
    assert gradient[0].any() and not gradient[1].any()
    shared, _ = constraints.evaluate(TOKEN, [leaf], [masks[0][:1]], WORDS)
    assert torch.equal(shared[:1], loss[:1])


@pytest.mark.parametrize("constraint", CONSTRAINTS.values(), ids=CONSTRAINTS)
def test_a_word_without_any_attention_is_finite(constraint):
    maps = make_maps(1)
    maps[0][..., 2] = 0
    maps[0][:, :, 4] = 0
    leaf = maps[0].requires_grad_()
    loss, _ = constraints.evaluate(constraint, [leaf], make_masks(1), [(2,)])
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    assert torch.isfinite(loss).all() and torch.isfinite(gradient).all()


def test_weights_sum_to_one():
    """Eq 5."""
    assert constraints.normalised([1.0, 3.0]) == [0.25, 0.75]
    assert constraints.normalised([0.2, 0.0]) == [1.0, 0.0]
    for weights in ([0.0, 0.0], [1.0, -0.5]):
        with pytest.raises(ValueError, match="must not be negative"):
            constraints.normalised(weights)


def test_nothing_to_read_is_an_error():
    with pytest.raises(ValueError, match="0 words"):
        constraints.evaluate(TOKEN, make_maps(), make_masks(), [])
