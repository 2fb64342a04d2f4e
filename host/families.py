"""Model families: which transformer blocks a UNet or a transformer has, in the order in which it calls them.

A layer's index counts blocks in call order (down, middle, up), as the papers do; one layer is one
self-attention followed by one cross-attention. Layers and scales are read from the UNet itself, so that one which
was cut down from a family's (SSD-1B, Segmind Vega, KOALA, BK-SDM) needs no row of its own. The family is the name
that published numbers go by; `ByFamily` is the one table that holds them. A block of a transformer is a layer too: one
joint attention.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby
from typing import Any, ClassVar, Generic, TypeVar

from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, Upsample

from .models import CELL, LATENT_CHANNELS
from .transformers import TRANSFORMERS, Transformer, transformer_of

_Number = TypeVar("_Number")


_UNET_PARTS = 3


@dataclass(frozen=True)
class Layer:
    """One transformer block.

    Attributes:
        index: place in call order, from 0.
        block: the host's name of the UNet block, such as ("output", 3), or the transformer's, such as ("double", 3).
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

    @property
    def stage(self) -> tuple[int, int]:
        """Way down, middle or way up, and scale, or stream; stages that are called later compare as larger."""
        part = ("input", "middle", "output", "double", "single").index(self.block[0])
        return part, (1 - part) * self.scale if part < _UNET_PARTS else 0


@dataclass(frozen=True)
class Family:
    """A model family and the layers of one of its UNets.

    Attributes:
        name: what published numbers go by.
        side: side of the latent at the size that the family draws best (512 pixels: 64).
        unet: the host's name of the UNet, by which it was recognised, such as "SSD1B"; empty for the family's own.
        transformer: what tells a transformer's joint attention; None for UNets.
    """

    name: str
    layers: tuple[Layer, ...]
    side: int
    unet: str = ""
    transformer: Transformer | None = None

    @property
    def joint(self) -> bool:
        """Whether text and image are one sequence in its attention."""
        return self.transformer is not None

    @property
    def cell(self) -> int:
        """Pixels along a side of its latents' cells."""
        return CELL if self.transformer is None else self.transformer.cell

    def check_unet(self, name: str) -> None:
        """Raise ValueError for a transformer, on which the named does not work yet."""
        if self.joint:
            raise ValueError(
                f"Connect a checkpoint of {', '.join(family.name for family in FAMILIES)}: {name} does not work on "
                f"transformers such as {self.name} yet."
            )

    def __str__(self) -> str:
        return self.name if self.is_whole else f"{self.unet} ({self.name} with other layers)"

    @property
    def whole(self) -> Family:
        """The family with the layers of its own UNet."""
        return _WHOLE[self.name]

    @cached_property
    def is_whole(self) -> bool:
        """Whether these are the layers of the family's own UNet, and not of one that was cut down from it."""
        return self.layers == self.whole.layers

    def up_to(self, side: int) -> tuple[Layer, ...]:
        """Layers with at most side x side tokens at the family's own size.

        The editing papers choose layers by their number of tokens at 512 pixels: N <= 32 x 32. Counting at the
        family's own size keeps the choice the same for every size of image. All layers of a transformer have the same
        number of tokens, so that the rule does not tell them apart: they are all meant.
        """
        if self.joint:
            return self.layers
        return tuple(layer for layer in self.layers if layer.scale * side >= self.side)

    def at_place_of(self, index: int) -> int:
        """Index of the layer here that stands where a published layer does, `index` in the family's own UNet.

        That is the same stage, and in it the same share of its blocks; with as many blocks as there, the same block
        and the same share of its layers. Where a stage has no attention here, it is the first layer behind it, or
        the last of all. In the own UNet it is `index` itself.
        """
        return self._places[index]

    @cached_property
    def _places(self) -> tuple[int, ...]:
        return tuple(_place_of(layer, self.whole.layers, self.layers) for layer in self.whole.layers)


class ByFamily(Generic[_Number]):
    """A method's published numbers, one for each family.

    Attributes:
        tables: all that there are, so that a test can ask each of them for every family.
        what: the number and the method, for the error: "CPAM's retain layer".
        numbers: by the family's name.
    """

    tables: ClassVar[list[ByFamily[Any]]] = []

    def __init__(self, what: str, numbers: Mapping[str, _Number]) -> None:
        self.what, self.numbers = what, dict(numbers)
        ByFamily.tables.append(self)

    def __getitem__(self, family: Family | str) -> _Number:
        """The number of a family, which may also be given by its name.

        Raises:
            ValueError: none is known for it.
        """
        name = family if isinstance(family, str) else family.name
        if name not in self.numbers:
            raise ValueError(
                f"{self.what} is not known for {name}, only for {', '.join(self.numbers)}. Set it in the method's "
                "node if that has an input for it, or connect a checkpoint of one of these families."
            )
        return self.numbers[name]


class LayerByFamily(ByFamily[int]):
    """Published layer numbers, which count the layers of the family's own UNet from 0."""

    def __getitem__(self, family: Family | str) -> int:
        """The layer of this UNet that stands where the published one does: `Family.at_place_of`."""
        published = super().__getitem__(family)
        return published if isinstance(family, str) else family.at_place_of(published)


def _place_of(layer: Layer, whole: tuple[Layer, ...], here: tuple[Layer, ...]) -> int:
    """See `Family.at_place_of`; in whole numbers, so that no place depends on rounding."""
    theirs, ours = _blocks_in(whole, layer.stage), _blocks_in(here, layer.stage)
    if not ours:
        return next((other.index for other in here if other.stage > layer.stage), len(here) - 1)
    number, their_block = next((i, block) for i, block in enumerate(theirs) if layer in block)
    whole_stage = len(theirs) * len(their_block)
    our_number, rest = divmod((number * len(their_block) + layer.depth) * len(ours), whole_stage)
    return ours[our_number][rest * len(ours[our_number]) // whole_stage].index


def _blocks_in(layers: tuple[Layer, ...], stage: tuple[int, int]) -> list[list[Layer]]:
    """The layers of a stage, in lists by UNet block."""
    inside = (layer for layer in layers if layer.stage == stage)
    return [list(block) for _, block in groupby(inside, key=lambda layer: layer.block)]


def _layers_by_block(blocks: list[tuple[str, int, int, int]]) -> tuple[Layer, ...]:
    """Layers from (block name, block number, number of transformer blocks, scale) in call order."""
    flat = (((name, number), depth, scale) for name, number, depths, scale in blocks for depth in range(depths))
    return _numbered(flat)


def _numbered(places: Iterable[tuple[tuple[str, int], int, int]]) -> tuple[Layer, ...]:
    """Layers from (block, depth, scale) in call order."""
    return tuple(Layer(index, *place) for index, place in enumerate(places))


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
SD1 = Family("SD1.x", _layers_by_block(_SD1_BLOCKS), side=64)
SD2 = Family("SD2.x", _layers_by_block(_SD1_BLOCKS), side=64)
SDXL = Family("SDXL", _layers_by_block(_SDXL_BLOCKS), side=128)
FAMILIES = (SD1, SD2, SDXL)
"""Families with the layers of their own UNets."""

JOINT_FAMILIES = tuple(Family(t.name, _numbered(t.places), t.side, "", t) for t in TRANSFORMERS)
"""Transformers, with the blocks of their own networks."""

_WHOLE = {family.name: family for family in (*FAMILIES, *JOINT_FAMILIES)}
_BY_CONFIG = {"SD15": SD1, "SD20": SD2, "SDXL": SDXL}
"""By class of the host's model configuration, or a class that it derives from."""


def family_of(model: Any) -> Family:
    """The family of a host MODEL, with the layers that its UNet has.

    Raises:
        ValueError: another architecture, which the message names with the families that work; or the UNet takes
            more than a latent (inpainting models), or it has no attention.
    """
    config = type(model.model.model_config)
    family = next((_BY_CONFIG[c.__name__] for c in config.__mro__ if c.__name__ in _BY_CONFIG), None)
    transformer = transformer_of(config)
    if transformer is not None:
        return _joint_family(model, transformer)
    if family is None:
        raise ValueError(
            f"Attention Edit does not know this model's architecture ({config.__name__}). It works with "
            f"{', '.join(_WHOLE)} and with UNets that were cut down from theirs, such as SSD-1B, Segmind Vega, KOALA "
            "and BK-SDM. Connect a checkpoint of one of these families."
        )
    unet = model.get_model_object("diffusion_model")
    if unet.in_channels != LATENT_CHANNELS:
        raise ValueError(
            f"This checkpoint's UNet takes {unet.in_channels} channels: an inpainting or InstructPix2Pix model, which "
            "also wants a masked or a second image at every step. Connect the ordinary checkpoint that it was made "
            "from."
        )
    places = tuple(_places_in(unet))
    if not places:
        raise ValueError(
            f"This model's UNet ({config.__name__}) has no layers of self-attention, which all edits act on. Connect "
            f"a checkpoint of {', '.join(_WHOLE)}."
        )
    return _interned(family, config.__name__, places)


def _joint_family(model: Any, transformer: Transformer) -> Family:
    """A transformer's family, with the blocks that it has.

    Raises:
        ValueError: it takes more than a latent (Flux Fill, Canny and Depth).
    """
    network, config = model.get_model_object("diffusion_model"), model.model.model_config
    channels = model.get_model_object("latent_format").latent_channels
    taken = config.unet_config.get("in_channels", channels)
    if taken not in (channels, channels * network.patch_size**2):
        raise ValueError(
            f"This checkpoint takes {taken} channels where its latents have {channels}: an inpainting or control model "
            "(Flux Fill, Canny, Depth), which also wants a second image at every step. Connect the ordinary checkpoint "
            "that it was made from."
        )
    return _interned(_WHOLE[transformer.name], type(config).__name__, tuple(transformer.places_in(network)))


@lru_cache(maxsize=16)
def _interned(family: Family, unet: str, places: tuple[tuple[tuple[str, int], int, int], ...]) -> Family:
    """One object for all models with the same UNet: what it knows of its layers is then found out once."""
    layers = _numbered(places)
    return family if layers == family.layers else Family(family.name, layers, family.side, unet, family.transformer)


def _places_in(unet: Any) -> Iterator[tuple[tuple[str, int], int, int]]:
    """(block, depth, scale) of the transformer blocks that a UNet really has, in call order.

    Blocks whose first attention reads the prompt too (SDXS) have no self-attention, and are left out.
    """
    scale = 1
    middle = [] if unet.middle_block is None else [unet.middle_block]
    for name, blocks in (("input", unet.input_blocks), ("middle", middle), ("output", unet.output_blocks)):
        for number, block in enumerate(blocks):
            for module in block:
                for depth, transformer in enumerate(getattr(module, "transformer_blocks", ())):
                    if not transformer.disable_self_attn:
                        yield (name, number), depth, scale
                if isinstance(module, Downsample):
                    scale *= 2
                elif isinstance(module, Upsample):
                    scale //= 2
