"""Nodes that record attention maps, and that make masks of them."""

from __future__ import annotations

from typing import Any

from ..attention.engine.install import install
from ..attention.engine.layers import ALL, MIDDLE, VITAL
from ..attention.maps.heat import MASK_RULES, HeatOptions, named, phrases, words_mask
from ..attention.maps.recorder import SIZES, recorder
from ..host.families import family_of
from ..host.schemas import io
from .inputs import CUSTOM_RANGE, fraction_input, layer_rule, maps_inputs, sharpen_input, smoothing_input
from .sockets import ALL_SIZES, CATEGORY, MAP_SIZES, NO_SIZE, SELF_SIZES, MapsSocket, PromptSocket


class RecordMapsNode(io.ComfyNode):
    """Record attention maps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditRecordMaps",
            display_name="Record Attention Maps",
            category=f"{CATEGORY}/attention maps",
            description="Records where the model looks for each word of the prompt while it samples or inverts. It "
            "changes nothing: the result is the same bit for bit.",
            search_aliases=["attention map", "cross attention", "daam", "heat map", "self attention map"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model that will sample or invert, with its edits if maps of the edit are wanted.",
                ),
                PromptSocket.Input(
                    "prompt",
                    tooltip="The words. Its conditioning has to be the positive one of the sampler, or the source of "
                    "the inversion.",
                ),
                io.Combo.Input(
                    "map_size",
                    options=MAP_SIZES,
                    default="quarter",
                    tooltip="Which layers' word maps, by the side of their maps as a share of the latent's. A quarter "
                    "(16x16 for 512 pixels) tells words apart best; for pictures under 512 pixels take half. Not used "
                    "on transformers, whose maps all have one size.",
                ),
                io.Combo.Input(
                    "self_maps",
                    options=SELF_SIZES,
                    default=NO_SIZE,
                    tooltip="Also record which pixels look at which, for Self-Attention Clusters and for sharpening. "
                    "Half (32x32 for 512 pixels) is usual; full is slow. On transformers any size means their own.",
                ),
                *_window_inputs(),
                *_blocks_inputs(),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For the sampler, DDIM Inversion or further edits."),
                MapsSocket.Output(display_name="maps", tooltip="Where the maps will be once that node has run."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        prompt: Any,
        map_size: str,
        self_maps: str,
        start: float,
        end: float,
        blocks: str = MIDDLE,
        block_range: str = "",
    ) -> io.NodeOutput:
        family = family_of(model)
        there = {layer.scale for layer in family.layers}
        cross = tuple(sorted(there)) if map_size == ALL_SIZES else (SIZES[map_size],)
        own = () if self_maps == NO_SIZE else (SIZES[self_maps],)
        control = recorder(prompt, family, cross, own, start, end, layer_rule(blocks, block_range))
        return io.NodeOutput(install(model, control), control.maps)


def _window_inputs() -> list[io.Input]:
    """Shares of the steps that are recorded."""
    return [
        fraction_input(
            "start",
            0.0,
            "Share of the steps, counted from the noisy end, before recording begins.",
            advanced=True,
        ),
        fraction_input(
            "end",
            1.0,
            "Share of the steps, counted from the noisy end, after which recording ends.",
            advanced=True,
        ),
    ]


def _blocks_inputs() -> list[io.Input]:
    """Which of a transformer's blocks are recorded."""
    return [
        io.Combo.Input(
            "blocks",
            options=[MIDDLE, VITAL, ALL, CUSTOM_RANGE],
            default=MIDDLE,
            optional=True,
            tooltip="On transformers: whose maps the mean is taken of. The middle two thirds show objects best; fewer "
            "are faster. Not used on SD1.x, SD2.x and SDXL.",
            advanced=True,
        ),
        io.String.Input(
            "block_range",
            default="3-13",
            optional=True,
            tooltip="Numbers of blocks in the order in which the model calls them, from 0, both ends included; used "
            "when blocks says so.",
            advanced=True,
        ),
    ]


class MapMaskNode(io.ComfyNode):
    """A mask from words."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditMapMask",
            display_name="Mask from Words",
            category=f"{CATEGORY}/attention maps",
            description="Makes a mask of what the model sees for words of the prompt, without drawing and without a "
            "segmentation model.",
            search_aliases=[
                "attention mask",
                "automatic mask",
                "text to mask",
                "segment by word",
                "otsu",
                "mask from text",
                "segment",
                "select object",
            ],
            inputs=[
                *maps_inputs(),
                io.String.Input(
                    "words",
                    default="",
                    tooltip="Words or phrases of the prompt, separated by commas; their masks are joined.",
                ),
                *_rule_inputs(),
                io.Int.Input(
                    "occurrence",
                    default=0,
                    min=0,
                    max=99,
                    tooltip="Which one, if a word stands in the prompt several times; 0 takes all of them together.",
                    advanced=True,
                ),
                smoothing_input(),
                sharpen_input(),
            ],
            outputs=[
                io.Mask.Output(display_name="mask", tooltip="At the size of the image that was sampled or inverted."),
                io.Mask.Output(display_name="heat", tooltip="The map itself from 0 to 1, for thresholds of your own."),
            ],
        )

    @classmethod
    def execute(  # noqa: PLR0913, PLR0917 (one argument per input)
        cls,
        maps: Any,
        after: Any,
        words: str,
        rule: str,
        threshold: float,
        share: float,
        occurrence: int,
        smoothing: float,
        sharpen: int,
    ) -> io.NodeOutput:
        recording = maps.of(after)
        if not phrases(words):
            raise ValueError(f"Mask from Words needs a word of the prompt: {', '.join(maps.prompt.words)}.")
        found = named(maps.prompt, words, occurrence or None)
        mask, heat = words_mask(recording, found, rule, threshold, share, HeatOptions(smoothing, sharpen))
        return io.NodeOutput(mask.float(), heat)


def _rule_inputs() -> list[io.Input]:
    """How a heat map becomes a mask."""
    return [
        io.Combo.Input(
            "rule",
            options=list(MASK_RULES),
            default=MASK_RULES[1],
            tooltip="What is selected: pixels hotter than the threshold, those above Otsu's threshold, or the "
            "hottest share.",
        ),
        fraction_input(
            "threshold",
            0.45,
            "For the rule threshold; the map runs from 0 to 1. CPAM 0.45, Prompt-to-Prompt 0.3.",
        ),
        io.Float.Input(
            "share",
            default=0.2,
            min=0.01,
            max=1.0,
            step=0.01,
            tooltip="For the rule largest share: how much of the image is selected.",
        ),
    ]


NODES = [RecordMapsNode, MapMaskNode]
