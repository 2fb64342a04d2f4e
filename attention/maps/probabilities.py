"""Attention maps as tensors: softmax probabilities, mean over heads, in float32 and in chunks of queries.

Fused attention kernels do not give probabilities; these compute them for the layers and tokens that are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

OBJECT_SCALE = 4
"""Scale of the layers whose cross-attention shows objects: 16 x 16 tokens at 512 pixels."""
MAP_LIMIT = 2**24
"""Largest number of probabilities held at once (64 MB in float32)."""


def cross_map(
    q: Tensor,
    k: Tensor,
    heads: int,
    columns: Sequence[int],
    length: int | None = None,
    beside: Tensor | None = None,
) -> Tensor:
    """How much each image token attends to some text tokens.

    Args:
        q: (R, N, C) queries, heads side by side in C.
        k: (R, L, C) keys.
        columns: T positions on the text's token axis.
        length: places of the text's own axis, when the host has repeated it to L = r * length to batch it with a
            longer one; the copies' shares are added up.
        beside: (R, M, C) keys that share the softmax, as those of the image do on joint attention.

    Returns:
        (R, N, T) float32, mean over heads; the shares of all L tokens, with those beside, add up to 1.

    Raises:
        ValueError: a column outside the text, or L is no multiple of the length.
    """
    return torch.cat([shares.mean(1) for shares in _word_chunks(q, k, heads, columns, length, beside)], dim=1)


def largest_share(
    q: Tensor,
    k: Tensor,
    heads: int,
    columns: Sequence[int],
    length: int | None = None,
    beside: Tensor | None = None,
) -> Tensor:
    """The largest share that any head of any image token gives to one of some text tokens, (R, 1, 1) float32.

    Arguments and errors as `cross_map` has them.
    """
    parts = [shares.amax((1, 2, 3)) for shares in _word_chunks(q, k, heads, columns, length, beside)]
    return torch.stack(parts).amax(0)[:, None, None]


def _word_chunks(
    q: Tensor, k: Tensor, heads: int, columns: Sequence[int], length: int | None, beside: Tensor | None
) -> Iterator[Tensor]:
    """Shares (R, heads, n, T) of n image tokens at a time, for `cross_map`."""
    own = length or k.shape[1]
    if k.shape[1] % own:
        raise ValueError(
            f"The text that the model reads has {k.shape[1]} tokens, the prompt with words {own}. Connect the "
            "conditioning of the same Prompt with Words to the sampler or inversion."
        )
    if any(not 0 <= column < own for column in columns):
        raise ValueError(f"Token positions {list(columns)} are not all within the text's {own} tokens.")
    for probabilities in _chunks(q, k, heads, beside):
        yield picked(probabilities.unflatten(-1, (-1, own)).sum(-2), columns)


def picked(values: Tensor, columns: Sequence[int]) -> Tensor:
    """Columns (..., T) of values (..., L). No list is copied to the device: that would wait for it in every layer."""
    if not columns:
        return values[..., :0]
    first, count = columns[0], len(columns)
    if list(columns) == list(range(first, first + count)):
        return values[..., first : first + count].contiguous()
    return torch.stack([values[..., column] for column in columns], dim=-1)


def self_map(q: Tensor, k: Tensor, heads: int, beside: Tensor | None = None) -> Tensor:
    """How much each image token attends to each other: (R, N, C) and (R, N, C) to (R, N, N) float32, mean of heads.

    With keys beside, see `cross_map`, rows add up to what they leave to the image.
    """
    return torch.cat([probabilities.mean(1) for probabilities in _chunks(q, k, heads, beside)], dim=1)


def _chunks(q: Tensor, k: Tensor, heads: int, beside: Tensor | None) -> Iterator[Tensor]:
    """Probabilities (R, heads, n, L) float32 of n queries at a time."""
    rows, length, width = k.shape
    size = width // heads
    k = k if beside is None else torch.cat([k, beside], dim=1)
    keys = k.float().unflatten(-1, (heads, size)).permute(0, 2, 3, 1)
    for part in q.split(max(1, MAP_LIMIT // (rows * heads * k.shape[1])), dim=1):
        queries = part.float().unflatten(-1, (heads, size)).transpose(1, 2)
        yield torch.softmax(queries @ keys * size**-0.5, dim=-1)[..., :length]
