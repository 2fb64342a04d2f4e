"""Worlds: a tiny model of a family with its text encoder, a size, a batch; and what is given to nodes in it."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import comfy.samplers
import tiny
import tiny_clip
import tiny_joint
import torch
from attention_edit.host.models import CELL, FRAMED

JOINT = tuple(tiny_joint.CONFIGS)
"""Kinds of transformers."""


class _Vae:
    """An autoencoder's two ways as plain enlarging and shrinking, for three of the channels."""

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """A latent (B, C, h, w), of Qwen-Image (B, C, 1, h, w), as an image (B, 8h, 8w, 3) in 0..1."""
        latent = latent[:, :, 0] if latent.ndim == FRAMED else latent
        large = torch.nn.functional.interpolate(latent[:, :3].float(), scale_factor=CELL, mode="nearest")
        return large.sigmoid().movedim(1, -1)


@cache
def _model(kind: str, dtype: torch.dtype) -> Any:
    """As the host's loader leaves it, and used once: then what the host itself puts on modules is there."""
    with torch.inference_mode():
        if kind in JOINT:
            model = tiny_joint.joint_model(kind, dtype=dtype)
            start, prompt = tiny_joint.joint_latent(1, kind), tiny_joint.joint_prompt(2, kind)
        else:
            model = tiny.tiny_model(kind, kind == "SD2", dtype)
            start, prompt = tiny.latent(1, 1, 2, 2), tiny.prompt(2, family(kind))
        tiny.sample(model, prompt, prompt, start, torch.tensor([0.5, 0.1]))
    return model


def family(kind: str) -> str:
    """The kind of UNet that another one is cut down from."""
    return tiny.CUT_DOWN[kind][0] if kind in tiny.CUT_DOWN else kind


@cache
def _clip(kind: str) -> Any:
    """The tiny SDXL encoder's pooled output is too short for the UNet: it is repeated."""
    with torch.inference_mode():
        clip = tiny_clip.tiny_clip(kind)
    own = clip.encode_from_tokens_scheduled

    def encode(*args: Any, **kwargs: Any) -> Any:
        found = own(*args, **kwargs)
        for _, options in found:
            pooled = options["pooled_output"]
            options["pooled_output"] = pooled.repeat(1, -(-1280 // pooled.shape[1]))[:, :1280]
        return found

    if kind == "SDXL":
        clip.encode_from_tokens_scheduled = encode
    return clip


@dataclass(frozen=True)
class World:
    """What a case is run in.

    Attributes:
        kind: of model, as tiny.py and tiny_joint.py name it.
        dtype: "float32", "bfloat16" or "float16", of the weights.
        height, width: of the latents, in cells. batch: number of images.
        only: one image of the batch alone, to compare with; None for all.
    """

    kind: str = "SD1"
    dtype: str = "float32"
    height: int = 4
    width: int = 4
    batch: int = 1
    only: int | None = None

    @property
    def joint(self) -> bool:
        """Whether it is a transformer."""
        return self.kind in JOINT

    @property
    def images(self) -> range:
        """The numbers of its images."""
        return range(self.batch) if self.only is None else range(self.only, self.only + 1)

    @property
    def model(self) -> Any:
        """The host MODEL, one for all cases."""
        return _model(self.kind, getattr(torch, self.dtype))

    def alone(self, image: int) -> World:
        """The same with one image of the batch."""
        return replace(self, only=image)

    def given(self) -> dict[str, tuple[Any, ...]]:
        """What is there before any node has run."""
        return {"model": (self.model,), "clip": (_clip("SD1" if self.joint else family(self.kind)),), "vae": (_Vae(),)}


class Given(ABC):
    """Something that a case gives to nodes and that is no node's."""

    @abstractmethod
    def make(self, world: World) -> Any:
        """The object."""


def _random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Sigmas(Given):
    """A SIGMAS of the world's own model, as BasicScheduler gives it, or turned round."""

    scheduler: str = "simple"
    steps: int = 2
    turned: bool = False

    def make(self, world: World) -> Any:
        found = comfy.samplers.calculate_sigmas(
            world.model.get_model_object("model_sampling"), self.scheduler, self.steps
        )
        return found.flip(0) if self.turned else found


@dataclass(frozen=True)
class Latent(Given):
    """A LATENT of random values, or what `what` says: empty, with NaN, of other channels, of another size."""

    seed: int = 1
    what: str = "random"

    def make(self, world: World) -> Any:
        channels = 4 if not world.joint else 128 if world.kind == "Flux2" else 16
        height, width = world.height, world.width
        if what_size := {"larger": (height + 1, width + 2), "turned": (width, height + 1)}.get(self.what):
            height, width = what_size
        if self.what == "channels":
            channels += 1
        found = torch.cat([_random(self.seed + 100 * i, 1, channels, height, width) for i in world.images])
        found = found * (1 if world.joint else 4)
        if self.what == "zero":
            found = torch.zeros_like(found)
        if self.what == "nan":
            found[..., 0, 0] = torch.nan
        if self.what == "strided":
            found = found.transpose(2, 3).contiguous().transpose(2, 3)
        return {"samples": found}


@dataclass(frozen=True)
class Text(Given):
    """A CONDITIONING with random states: for transformers, whose text encoders are too large, and for odd ones."""

    seed: int = 1
    tokens: int = 77

    def make(self, world: World) -> Any:
        if world.joint:
            return tiny_joint.joint_prompt(self.seed, world.kind, min(self.tokens, 20))
        return tiny.prompt(self.seed, family(world.kind), self.tokens)


@dataclass(frozen=True)
class Image(Given):
    """An IMAGE of random values, as large as the world's and some `more` pixels."""

    seed: int = 1
    more: int = 0
    channels: int = 3

    def make(self, world: World) -> Any:
        shape = (world.height * CELL + self.more, world.width * CELL + self.more, self.channels)
        return torch.stack([_random(self.seed + 100 * i, *shape).sigmoid() for i in world.images])


MASKS = (
    "box",
    "soft",
    "strided",
    "pixel",
    "many",
    "noisy",
    "empty",
    "full",
    "nan",
    "faint",
    "4d",
    "2d",
    "aspect",
    "too many",
)
"""What a mask may be, good ones first."""


@dataclass(frozen=True)
class Mask(Given):
    """A MASK: a box by shares of the sides, made into what `what` says, with `cell` pixels for each latent cell."""

    what: str = "box"
    top: float = 0.25
    left: float = 0.25
    side: float = 0.5
    cell: float = CELL

    def _box(self, height: int, width: int, shift: float) -> torch.Tensor:
        found = torch.zeros(height, width)
        top, left = int(((self.top + shift) % 1) * height), int(self.left * width)
        found[top : top + max(1, int(self.side * height)), left : left + max(1, int(self.side * width))] = 1
        return found

    def make(self, world: World) -> torch.Tensor:
        height, width = (max(1, round(side * self.cell)) for side in (world.height, world.width))
        if self.what == "aspect":
            height, width = 2 * height + 17, width
        found = self._box(height, width, 0)[None]
        if self.what == "many":
            found = torch.stack([self._box(height, width, 0.3 * i) for i in world.images])
        elif self.what == "too many":
            found = found.expand(world.batch + 1, -1, -1)
        elif self.what == "soft":
            found = torch.linspace(0, 1, width).expand(1, height, width) * 0.99
        elif self.what == "noisy":
            found = _random(zlib.crc32(repr(self).encode()), 1, height, width).sigmoid()
        elif self.what == "strided":
            found = found.repeat_interleave(2, 1).transpose(1, 2).contiguous().transpose(1, 2)[:, ::2]
        elif self.what == "pixel":
            found = torch.zeros_like(found)
            found[:, int(self.top * (height - 1)), int(self.left * (width - 1))] = 1
        elif self.what in {"empty", "full"}:
            found = torch.full_like(found, float(self.what == "full"))
        elif self.what == "nan":
            found = torch.full_like(found, torch.nan) if self.side < 0.5 else torch.where(found > 0, torch.nan, 1.0)
        elif self.what == "faint":
            found = found * 0.4
        elif self.what in {"4d", "2d"}:
            found = found[:, None] if self.what == "4d" else found[0]
        return found
