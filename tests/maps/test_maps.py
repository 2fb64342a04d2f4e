"""Attention maps as tensors, against the definition in float64 and against the host's own attention."""

from __future__ import annotations

import pytest
import torch
from attention_edit.attention.maps import probabilities as maps
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

HEADS, SIZE = 3, 8


def features(rows: int = 2, queries: int = 20, keys: int = 7, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    shapes = ((rows, queries), (rows, keys), (rows, keys))
    q, k, v = (torch.randn(*shape, HEADS * SIZE, generator=rng) for shape in shapes)
    return q, k, v


def defined(q: Tensor, k: Tensor) -> Tensor:
    """(R, N, L) float64, head by head."""
    found = []
    for head in range(HEADS):
        a, b = (x.double()[..., head * SIZE : (head + 1) * SIZE] for x in (q, k))
        found.append(torch.softmax(a @ b.mT / SIZE**0.5, dim=-1))
    return torch.stack(found).mean(0)


def test_cross_map_is_the_mean_of_the_heads() -> None:
    q, k, _ = features()
    found = maps.cross_map(q, k, HEADS, [4, 0, 4])
    assert found.shape == (2, 20, 3) and found.dtype == torch.float32
    assert torch.allclose(found.double(), defined(q, k)[..., [4, 0, 4]], atol=1e-6)


def test_it_is_what_the_hosts_attention_weighs_by() -> None:
    """With values that say in which key's place they are, the host's output is the map."""
    q, k, _ = features(keys=SIZE)
    places = torch.eye(SIZE).repeat(1, HEADS)[None].expand(2, -1, -1).contiguous()
    out = optimized_attention(q, k, places, HEADS).unflatten(-1, (HEADS, SIZE)).mean(-2)
    assert torch.allclose(maps.cross_map(q, k, HEADS, range(SIZE)), out, atol=1e-5)


def test_repeated_text_is_folded() -> None:
    q, k, _ = features()
    once = maps.cross_map(q, k, HEADS, [1, 5])
    repeated = maps.cross_map(q, k.repeat(1, 3, 1), HEADS, [1, 5], length=7)
    assert torch.allclose(once, repeated, atol=1e-6)
    with pytest.raises(ValueError, match="the model reads has 7 tokens, the prompt with words 5"):
        maps.cross_map(q, k, HEADS, [1], length=5)
    with pytest.raises(ValueError, match="not all within the text's 7 tokens"):
        maps.cross_map(q, k.repeat(1, 3, 1), HEADS, [1, 8], length=7)


def test_self_map_rows_add_up_to_one() -> None:
    q, k, _ = features(keys=20)
    found = maps.self_map(q, k, HEADS)
    assert torch.allclose(found.double(), defined(q, k), atol=1e-6)
    assert torch.allclose(found.sum(-1), torch.ones(2, 20), atol=1e-5)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, _ = features(keys=20)
    cross, own = maps.cross_map(q, k, HEADS, [3]), maps.self_map(q, k, HEADS)
    for limit in (1, 2 * HEADS * 20 * 7):
        monkeypatch.setattr(maps, "MAP_LIMIT", limit)
        assert torch.allclose(maps.cross_map(q, k, HEADS, [3]), cross, atol=1e-7)
        assert torch.allclose(maps.self_map(q, k, HEADS), own, atol=1e-7)


def test_half_precision_is_computed_in_full() -> None:
    """Large logits that float16 would not hold."""
    q, k, _ = (x * 60 for x in features())
    found = maps.cross_map(q.half(), k.half(), HEADS, range(7))
    assert torch.allclose(found.double(), defined(q.half(), k.half()), atol=1e-4)
    assert torch.isfinite(found).all()
