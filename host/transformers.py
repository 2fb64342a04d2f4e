"""Transformers with joint attention: text and image are one sequence, and one attention in each block serves both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

BlockPlace = tuple[tuple[str, int], int, int]
"""A block by the host's names, such as ("double", 3), its depth (0), and latent cells along a token's side."""


@dataclass(frozen=True)
class Transformer:
    """A family of transformers.

    Attributes:
        name: what published numbers go by.
        streams: the host's name of a kind of block, the network's list of them, and how many the family's own has.
        side: side of the latent at the size that the family draws best.
        patch: latent cells along a token's side.
        cell: pixels along a latent cell's side.
        numbered: whether the host tells attention in which block it is.
        vital: blocks that shape the picture most, where a paper lists them.
        behind_text: whether the image's position begins where the prompt ends, so that it depends on its length.
        fills_ahead: whether a short prompt's text is filled up ahead of it, and not behind.
    """

    name: str
    streams: tuple[tuple[str, str, int], ...]
    side: int = 128
    patch: int = 2
    cell: int = 8
    numbered: bool = True
    vital: tuple[tuple[str, int], ...] = ()
    behind_text: bool = False
    fills_ahead: bool = False

    @property
    def places(self) -> tuple[BlockPlace, ...]:
        """The blocks of the family's own network, in call order."""
        counts = ((stream, count) for stream, _, count in self.streams)
        return tuple(((stream, i), 0, self.patch) for stream, count in counts for i in range(count))

    def places_in(self, network: Any) -> Iterator[BlockPlace]:
        """The blocks that a network really has, in call order."""
        for stream, blocks, _ in self.streams:
            for number in range(len(getattr(network, blocks))):
                yield (stream, number), 0, network.patch_size

    def turn_of(self, network: Any) -> Turn | None:
        """How a network turns queries and keys by the prompt's length; None if it does not."""
        if not self.behind_text:
            return None
        embedder = network.rope_embedder
        return Turn(float(embedder.theta), int(embedder.axes_dim[0]))


@dataclass(frozen=True)
class Turn:
    """Rotary positions along the axis on which the prompt and the image follow each other.

    Attributes:
        theta: base of the angles. channels: of each head, the first ones, in pairs that turn together.
    """

    theta: float
    channels: int


def _flux(name: str, double: int, single: int, **more: Any) -> Transformer:
    return Transformer(name, (("double", "double_blocks", double), ("single", "single_blocks", single)), **more)


_VITAL = (*(("double", i) for i in (0, 1, 17, 18)), *(("single", i) for i in (6, 9, 34, 35, 37)))
"""Stable Flow (Avrahami et al. 2025, section 3.2 and its released code), for Flux.1 dev."""
FLUX1 = _flux("Flux.1", 19, 38, vital=_VITAL)
FLUX2 = _flux("Flux.2", 8, 48, side=64, patch=1, cell=16, fills_ahead=True)
CHROMA = _flux("Chroma", 19, 38)
SD3 = Transformer("SD3", (("double", "joint_blocks", 24),), numbered=False)
ZIMAGE = Transformer("Z-Image", (("double", "layers", 30),), behind_text=True)
LUMINA2 = Transformer("Lumina 2", (("double", "layers", 26),), behind_text=True)
QWEN = Transformer("Qwen-Image", (("double", "transformer_blocks", 60),))
"""Its latents have an axis of frames, of which there is one."""
TRANSFORMERS = (FLUX1, FLUX2, CHROMA, SD3, ZIMAGE, LUMINA2, QWEN)
_BY_CONFIG = {
    "Flux": FLUX1,
    "FluxSchnell": FLUX1,
    "Flux2": FLUX2,
    "Chroma": CHROMA,
    "SD3": SD3,
    "ZImage": ZIMAGE,
    "Lumina2": LUMINA2,
    "QwenImage": QWEN,
}
_OTHERS = ("FluxInpaint", "ChromaRadiance", "ZImagePixelSpace")
"""Configurations that derive from those above, and are not of their kind."""


def transformer_of(config: type) -> Transformer | None:
    """The family of a class of the host's model configuration; None if it is none of these."""
    names = [parent.__name__ for parent in config.__mro__]
    if any(other in names for other in _OTHERS):
        return None
    return next((_BY_CONFIG[name] for name in names if name in _BY_CONFIG), None)


def width_of(network: Any) -> int:
    """Channels of a transformer's tokens, which its keys and values have too."""
    return int(next(getattr(network, name) for name in ("hidden_size", "dim", "inner_dim") if hasattr(network, name)))


def image_pads(network: Any, tokens: int) -> int:
    """How many tokens a network puts behind an image of some tokens, to make them a multiple (Z-Image)."""
    multiple = getattr(network, "pad_tokens_multiple", None)
    return -tokens % multiple if multiple else 0


def takes_guidance(model: Any) -> bool:
    """Whether a host MODEL reads the guidance scale as an input (Flux.1 dev, Flux.2 dev)."""
    return bool(getattr(getattr(model.get_model_object("diffusion_model"), "params", None), "guidance_embed", False))
