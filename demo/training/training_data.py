"""What the demo model's UNet is trained on: noised latents of rendered scenes, with captions."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path

import torch
from bundle import load, world
from safetensors.torch import load_file, save_file
from scenes import captions
from scenes.disturbance import disturb
from torch import Tensor
from tqdm import tqdm

PUT_RIGHT, PUT_RIGHT_ABOVE = 0.4, 400
"""Share of the noised pictures that show a disturbed scene, and from which timestep on: below it a picture's
layout is settled."""
_SCENES, _DISTURBED = 7_000_000, 8_000_000
_KEPT = tuple(field.name for field in fields(world.Scenes) if field.name != "textures")


@dataclass(frozen=True)
class Pool:
    """Scenes to train on, drawn once.

    Attributes:
        latents, disturbed: (N, 4, 16, 16) of the scenes as they are, and with one object not as it shall be.
        scenes: N of them, but for their textures, which nothing reads.
    """

    latents: Tensor
    disturbed: Tensor
    scenes: world.Scenes

    def chosen(self, chosen: Tensor) -> world.Scenes:
        """Scenes by their numbers (B,)."""
        return replace(self.scenes, **{name: getattr(self.scenes, name)[chosen] for name in _KEPT})

    def said(self, chosen: Tensor, rng: torch.Generator, whole: Tensor) -> Tensor:
        """Caption indices (B,) of chosen scenes (B,)."""
        return captions.training_captions(self.chosen(chosen), rng, whole)


@dataclass(frozen=True)
class Batch:
    """Noised latents and what the UNet shall make of them.

    Attributes:
        noisy, wanted: (B, 4, 16, 16), what it sees and the noise it shall predict.
        t: (B,) timesteps. said: (B,) caption indices. weight: (B,) of the squared error.
        chosen: (B,) the pool's scenes.
    """

    noisy: Tensor
    wanted: Tensor
    t: Tensor
    said: Tensor
    weight: Tensor
    chosen: Tensor


@torch.no_grad()
def draw_pool(vae: load.Autoencoder, device: torch.device, count: int, seed: int, folder: Path) -> Pool:
    """Render and encode scenes; the latents are kept in a file of these scenes and this autoencoder."""
    scenes, chunk = [], min(count, 200)
    told = hashlib.sha256(f"{count} {seed}".encode())
    for weight in vae.parameters():
        told.update(weight.detach().cpu().numpy().tobytes())
    path = folder / f"pool-{told.hexdigest()[:12]}.safetensors"
    latents = torch.empty(2, count, 4, 16, 16, dtype=torch.float16, device=device)
    cached = load_file(path)["latents"] if path.exists() else None
    for start in tqdm(range(0, count, chunk), desc="scenes"):
        size = min(chunk, count - start)
        part = _scenes(size, seed, start)
        if cached is None:
            latents[:, start : start + size] = _latents(vae, device, part, seed, start)
        scenes.append(part)
    if cached is not None:
        latents = cached.to(device)
    else:
        folder.mkdir(exist_ok=True)
        save_file({"latents": latents.cpu()}, path)
    return _pool(latents, scenes)


@torch.no_grad()
def draw_pool_within(vae: load.Autoencoder, device: torch.device, count: int, seed: int, until: float) -> Pool:
    """Render and encode up to `count` scenes, fewer when `time.monotonic()` passes `until`; at least one part."""
    scenes, latents, chunk = [], [], min(count, 500)
    for start in range(0, count, chunk):
        scenes.append(_scenes(min(chunk, count - start), seed, start))
        latents.append(_latents(vae, device, scenes[-1], seed, start))
        if time.monotonic() > until:
            break
    return _pool(torch.cat(latents, 1), scenes)


def _scenes(size: int, seed: int, start: int) -> world.Scenes:
    """The scenes of a pool from number `start` on."""
    return world.sample_scenes(size, seed + _SCENES + start, empty_share=0.04)


def _latents(vae: load.Autoencoder, device: torch.device, scenes: world.Scenes, seed: int, start: int) -> Tensor:
    """Latents (2, B, 4, 16, 16), float16, of scenes and of their disturbed versions."""
    twins = disturb(scenes, torch.Generator().manual_seed(seed + _DISTURBED + start))
    return torch.stack([vae.encoder(world.render(x.to(device)) * 2 - 1).half() for x in (scenes, twins)])


def _pool(latents: Tensor, scenes: Sequence[world.Scenes]) -> Pool:
    """A pool of latents (2, N, 4, 16, 16) and their scenes."""
    kept = {name: torch.cat([getattr(part, name) for part in scenes]) for name in _KEPT}
    return Pool(latents[0], latents[1], replace(world.sample_scenes(1, 0), **kept).to(latents.device))


@cache
def alphas(device: torch.device) -> Tensor:
    """Stable Diffusion's cumulative products of alpha (1000,)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float().to(device)


def draw(pool: Pool, size: int, rng: torch.Generator, put_right: bool, cubic: bool = False) -> Batch:
    """A batch of noised latents; with `put_right` some of them show a disturbed scene.

    For these the wanted noise is the one that leads to the scene as its caption has it. With `cubic` most timesteps
    are of high noise, where an adapter's work is done (Mou et al. 2023, cubic sampling).
    """
    device = pool.latents.device
    chosen = torch.randint(len(pool.latents), (size,), generator=rng, device=device)
    # One level from every part of the range: less noise in the loss than levels drawn apart.
    place_in_range = torch.arange(size, device=device) + torch.rand(size, generator=rng, device=device)
    share = place_in_range / size
    t = (1000 * (1 - share**3 if cubic else share)).long().clamp(max=999)
    often = PUT_RIGHT if put_right else 0.0
    wrong = (t >= PUT_RIGHT_ABOVE) & (torch.rand(size, generator=rng, device=device) < often)
    said = pool.said(chosen, rng, whole=wrong)
    clean = pool.latents[chosen].float()
    shown = torch.where(wrong.view(-1, 1, 1, 1), pool.disturbed[chosen].float(), clean)
    noise = torch.randn(clean.shape, generator=rng, device=device)
    kept = alphas(device)[t]
    alpha = kept.view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * shown + (1 - alpha).sqrt() * noise
    # Weights of the v objective, with min-SNR's bound (Hang et al. 2023) on both sides: plain eps weights care
    # little for nearly pure noise, where a picture's layout and colours are decided.
    snr = kept / (1 - kept)
    return Batch(
        noisy=noisy,
        wanted=(noisy - alpha.sqrt() * clean) / (1 - alpha).sqrt(),
        t=t,
        said=said,
        weight=(1 + 1 / snr).clamp(max=25) * (5 / snr).clamp(max=1),
        chosen=chosen,
    )
