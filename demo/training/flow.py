"""What the demo transformer learns: the velocity of a rectified flow, in the host's terms.

x = sigma * noise + (1 - sigma) * scene, and the network predicts (x - scene) / sigma (Liu et al. 2023), as the host's
CONST has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from bundle.transformer import SHIFT
from comfy.ldm.flux.layers import timestep_embedding
from comfy.ldm.flux.model import Flux
from torch import Tensor, nn
from training.training_data import PUT_RIGHT, Batch, Pool

PUT_RIGHT_ABOVE_SIGMA = 0.54
"""As much noise for the picture in it as at the UNet's PUT_RIGHT_ABOVE."""
EVEN = 0.2
"""Share of noise levels that are drawn evenly: of the bell of the others little reaches pure noise, where a run
begins and a picture's ground is decided."""


def new_transformer(config: dict[str, Any], device: torch.device) -> Flux:
    """The host's Flux class on torch's own layers."""
    return Flux(**config, dtype=torch.float32, device=device, operations=nn)


def noise_levels(size: int, rng: torch.Generator, device: torch.device) -> Tensor:
    """Noise levels (size,) in 0..1 to learn at: logit-normal (Esser et al. 2024), shifted as sampling is, some even.

    They are spread over the range: less noise in the loss than levels drawn apart.
    """
    place = (torch.arange(size, device=device) + torch.rand(size, generator=rng, device=device)) / size
    bell = torch.sigmoid(torch.special.ndtri(place.clamp(1e-6, 1 - 1e-6)) + math.log(SHIFT))
    even = torch.rand(size, generator=rng, device=device) < EVEN
    return torch.where(even, place, bell).clamp(min=1e-3)


def draw_batches(pool: Pool, size: int, count: int, rng: torch.Generator, put_right: bool) -> Iterator[Batch]:
    """Batches of noised latents, drawn together; with `put_right` some of them show a disturbed scene.

    For these the wanted velocity is the one that leads to the scene as its caption has it.
    """
    device, total = pool.latents.device, size * count
    chosen = torch.randint(len(pool.latents), (total,), generator=rng, device=device)
    sigmas = noise_levels(total, rng, device)
    wrong = torch.rand(total, generator=rng, device=device) < (PUT_RIGHT if put_right else 0.0)
    wrong &= sigmas > PUT_RIGHT_ABOVE_SIGMA
    said = pool.said(chosen, rng, whole=wrong)
    weight = torch.ones(size, device=device)
    for start in range(count):
        rows = slice(start, None, count)  # every batch has its noise levels from the whole range
        clean = pool.latents[chosen[rows]].float()
        shown = torch.where(wrong[rows].view(-1, 1, 1, 1), pool.disturbed[chosen[rows]].float(), clean)
        sigma = sigmas[rows].view(-1, 1, 1, 1)
        noise = torch.randn(clean.shape, generator=rng, device=device)
        noisy = sigma * noise + (1 - sigma) * shown
        yield Batch(noisy, (noisy - clean) / sigma, sigmas[rows], said[rows], weight, chosen[rows])


class Velocity:
    """The host's Flux.forward with gradients: its blocks add in place and its rotation has no backward.

    For what the demo transformer has: patches of one cell, one modulation for all blocks, no pooled text.
    """

    def __init__(self, model: Flux, compiled: bool) -> None:
        self.model, self.turns = model, dict[tuple[int, ...], tuple[Tensor, Tensor]]()
        self.double: Callable[..., Any] = torch.compile(_double, dynamic=False) if compiled else _double
        self.single: Callable[..., Any] = torch.compile(_single, dynamic=False) if compiled else _single

    def __call__(self, x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        """Velocities (B, 4, H, W) of noisy latents at noise levels (B,) under text states (B, T, C)."""
        model: Any = self.model
        text, image = model.txt_in(context), model.img_in(x.flatten(2).mT)
        place = (text.shape[1], *x.shape[-2:])
        if place not in self.turns:
            self.turns[place] = self._turns(*place)
        turns = self.turns[place]
        vec = model.time_in(timestep_embedding(sigma.float(), 256))[:, None]
        for_image, for_text, for_both, last = (
            layer(F.silu(vec)).float().chunk(parts, -1)
            for layer, parts in (
                (model.double_stream_modulation_img.lin, 6),
                (model.double_stream_modulation_txt.lin, 6),
                (model.single_stream_modulation.lin, 3),
                (model.final_layer.adaLN_modulation[1], 2),
            )
        )
        text, image = text.float(), image.float()
        for block in model.double_blocks:
            image, text = self.double(block, image, text, for_image, for_text, turns)
        both = torch.cat((text, image), 1)
        for block in model.single_blocks:
            both = self.single(block, both, for_both, turns)
        image = both[:, text.shape[1] :]
        return model.final_layer.linear(_modulated(image, *last)).mT.unflatten(2, x.shape[-2:])

    def _turns(self, words: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines (T + H*W, d/2) of the tokens' positions; all words stand at the first."""
        device = next(self.model.parameters()).device
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        cells = torch.stack((torch.zeros_like(x), y, x), -1).flatten(0, 1)
        places = torch.cat((torch.zeros(words, 3), cells))[None].to(device)
        turns = self.model.pe_embedder(places)[0, 0]
        return turns[..., 0, 0], turns[..., 1, 0]


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def _heads(projected: Tensor, norm: Any, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised queries and keys, and values, (B, heads, T, d) each, of (B, T, 3 * heads * d)."""
    q, k, v = projected.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    q = F.rms_norm(q.float(), q.shape[-1:], norm.query_norm.weight)
    return q, F.rms_norm(k.float(), k.shape[-1:], norm.key_norm.weight), v


def _turned(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    (cos, sin), (a, b) = turns, x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


def _attention(q: Tensor, k: Tensor, v: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """(B, T, C) of (B, heads, T, d)."""
    q, k = (_turned(x, turns).to(v.dtype) for x in (q, k))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _double(
    block: Any, image: Tensor, text: Tensor, for_image: Any, for_text: Any, turns: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """The host's DoubleStreamBlock.forward."""
    streams = ((text, block.txt_attn, for_text), (image, block.img_attn, for_image))
    parts = [_heads(own.qkv(_modulated(x, *mod[:2])), own.norm, block.num_heads) for x, own, mod in streams]
    q, k, v = (torch.cat(both, 2) for both in zip(*parts, strict=True))
    found = _attention(q, k, v, turns).split((text.shape[1], image.shape[1]), 1)
    text, image = (x + mod[2] * own.proj(y) for (x, own, mod), y in zip(streams, found, strict=True))
    image = image + for_image[5] * block.img_mlp(_modulated(image, *for_image[3:5]))
    return image, text + for_text[5] * block.txt_mlp(_modulated(text, *for_text[3:5]))


def _single(block: Any, x: Tensor, mod: Any, turns: tuple[Tensor, Tensor]) -> Tensor:
    """The host's SingleStreamBlock.forward."""
    first = block.linear1(_modulated(x, *mod[:2]))
    projected, hidden = first.split((3 * block.hidden_size, block.mlp_hidden_dim), -1)
    found = _attention(*_heads(projected, block.norm, block.num_heads), turns)
    return x + mod[2] * block.linear2(torch.cat((found, F.gelu(hidden, approximate="tanh")), 2))
