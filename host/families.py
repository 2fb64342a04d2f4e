"""Model families: which transformer blocks a UNet has, in the order in which it calls them.

A layer's index counts blocks in call order (down, middle, up), as the papers do; one layer is one
self-attention followed by one cross-attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Layer:
    """One transformer block.

    Attributes:
        index: place in call order, from 0.
        block: the host's name of the UNet block, such as ("output", 3).
        depth: place of the transformer block inside its UNet block.
        scale: side of the latent divided by the side of this layer's feature map.
    """

    index: int
    block: tuple[str, int]
    depth: int
    scale: int

    @property
    def key(self) -> tuple[str, int, int]:
        """The host's key for replace patches."""
        return (*self.block, self.depth)


@dataclass(frozen=True)
class Family:
    """A model family and its layers.

    Attributes:
        side: side of the latent at the size that the family draws best (512 pixels: 64).
    """

    name: str
    layers: tuple[Layer, ...]
    side: int

    def up_to(self, side: int) -> tuple[Layer, ...]:
        """Layers with at most side x side tokens at the family's own size.

        The editing papers choose layers by their number of tokens at 512 pixels: N <= 32 x 32. Counting at the
        family's own size keeps the choice the same for every size of image.
        """
        return tuple(layer for layer in self.layers if layer.scale * side >= self.side)


def _layers(blocks: list[tuple[str, int, int, int]]) -> tuple[Layer, ...]:
    """Layers from (block name, block number, depth, scale) in call order."""
    flat = [((name, number), depth, scale) for name, number, depths, scale in blocks for depth in range(depths)]
    return tuple(Layer(i, block, depth, scale) for i, (block, depth, scale) in enumerate(flat))


_SD1_BLOCKS = [
    *[("input", number, 1, scale) for number, scale in ((1, 1), (2, 1), (4, 2), (5, 2), (7, 4), (8, 4))],
    ("middle", 0, 1, 8),
    *[("output", number, 1, 4) for number in (3, 4, 5)],
    *[("output", number, 1, 2) for number in (6, 7, 8)],
    *[("output", number, 1, 1) for number in (9, 10, 11)],
]
_SDXL_BLOCKS = [
    *[("input", number, depth, scale) for number, depth, scale in ((4, 2, 2), (5, 2, 2), (7, 10, 4), (8, 10, 4))],
    ("middle", 0, 10, 4),
    *[("output", number, 10, 4) for number in (0, 1, 2)],
    *[("output", number, 2, 2) for number in (3, 4, 5)],
]
SD1 = Family("SD1.x", _layers(_SD1_BLOCKS), side=64)
SD2 = Family("SD2.x", _layers(_SD1_BLOCKS), side=64)
SDXL = Family("SDXL", _layers(_SDXL_BLOCKS), side=128)
FAMILIES = (SD1, SD2, SDXL)
LATENT_CHANNELS = 4

_BY_CONFIG = {"SD15": SD1, "SD20": SD2, "SDXL": SDXL}
"""By class of the host's model configuration, or a class that it derives from."""


def family_of(model: Any) -> Family:
    """The family of a host MODEL.

    Raises:
        ValueError: the UNet takes more than a latent (inpainting models), the model has no block table here, or
            other blocks than its family (SSD-1B, Vega); the message names it and the families that have a table.
    """
    config = type(model.model.model_config)
    family = next((_BY_CONFIG[c.__name__] for c in config.__mro__ if c.__name__ in _BY_CONFIG), None)
    if family is None or _blocks_of(model) != [(la.block, la.depth) for la in family.layers]:
        known = ", ".join(f.name for f in FAMILIES)
        raise ValueError(
            f"Attention Edit has no block table for this model ({config.__name__}); it knows {known}. "
            "Connect a checkpoint of one of these families."
        )
    channels = model.get_model_object("diffusion_model").in_channels
    if channels != LATENT_CHANNELS:
        raise ValueError(
            f"This checkpoint's UNet takes {channels} channels: an inpainting or InstructPix2Pix model, which also "
            "wants a masked or a second image at every step. Connect the ordinary checkpoint that it was made from."
        )
    return family


def _blocks_of(model: Any) -> list[tuple[tuple[str, int], int]]:
    """The transformer blocks that a model's UNet really has, in call order."""
    unet = model.get_model_object("diffusion_model")
    parts = (("input", unet.input_blocks), ("middle", [unet.middle_block]), ("output", unet.output_blocks))
    return [
        ((name, number), depth)
        for name, blocks in parts
        for number, block in enumerate(blocks)
        for module in block
        for depth in range(len(getattr(module, "transformer_blocks", ())))
    ]
