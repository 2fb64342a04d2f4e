"""MAG-Edit's nodes: guidance of words under a mask, and the curve that shows whether it works."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import ui
from torch import Tensor

from ..attention.methods.mag.constraints import CONSTRAINTS
from ..attention.methods.mag.control import MAG
from ..attention.methods.mag.curve import Curve
from ..attention.methods.mag.install import CUSTOM, PRESETS, PUBLISHED, add_guidance
from ..attention.methods.mag.parts import NEGATIVE_SCALE, PUBLISHED_SCALE, Negative, drawn, look_up
from ..host.schemas import io
from .inputs import fraction_input, model_input, model_output
from .sockets import CATEGORY, CurveSocket, InversionSocket, PromptSocket

DETAIL = {"coarse (16 x 16 at 512 pixels)": 4, "middle (32 x 32 at 512 pixels)": 2, "fine (64 x 64 at 512 pixels)": 1}


class MAGNode(io.ComfyNode):
    """MAG-Edit."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditMAG",
            display_name="Edit One of Several (MAG-Edit)",
            category=f"{CATEGORY}/methods",
            description="Mask-Based Attention-Adjusted Guidance: makes words of the prompt appear under a mask, among "
            "several objects, by optimising the latent there. Goes on Prompt-to-Prompt, Plug-and-Play or CPAM, or "
            "alone. Chain several for several words and masks: they are guided together.",
            search_aliases=[
                "mag-edit",
                "attention guidance",
                "local edit",
                "attend and excite",
                "gradient guidance",
                "edit part",
                "replace one object",
                "recolour",
                "recolor",
            ],
            inputs=[
                model_input(),
                PromptSocket.Input(
                    "target_prompt", tooltip="Target prompt, from the Prompt with Words that is sampled with."
                ),
                io.Mask.Input("mask", tooltip="Where they shall appear. Draw it closely."),
                io.String.Input(
                    "words",
                    default="",
                    tooltip="New words of the target prompt that shall appear under the mask, separated by commas.",
                ),
                *_constraint_inputs(),
                *_effort_inputs(),
                *_published_inputs(),
                *_optional_inputs(),
            ],
            outputs=[
                model_output(),
                CurveSocket.Output(display_name="curve", tooltip="Filled by the sampler, for Guidance Curve."),
            ],
        )

    @classmethod
    def execute(  # noqa: PLR0913, PLR0917 (one argument per input)
        cls,
        model: Any,
        target_prompt: Any,
        mask: Tensor,
        words: str,
        constraint: str,
        preset: str,
        weight: float,
        scale: float,
        iterations: int,
        start: float,
        end: float,
        gain: float,
        maps: str,
        blend_start: float,
        low_memory: bool,
        negative_words: str,
        negative_weight: float,
        inversion: Any = None,
        negative: Any = None,
        negative_prompt: Any = None,
    ) -> io.NodeOutput:
        curve = Curve(words, constraint)
        effort = PRESETS.get(preset, {"iterations": iterations, "start": start, "end": end, "gain": gain})
        part = MAG(
            look_up(target_prompt, words),
            drawn(mask),
            CONSTRAINTS[constraint],
            weight,
            scale,
            detail=DETAIL[maps],
            negative=Negative.of(negative_words, negative, negative_prompt, negative_weight),
            blend=blend_start,
            checkpointing=low_memory,
            curve=curve,
            prompt=target_prompt,
            **effort,
        )
        return io.NodeOutput(add_guidance(model, part, inversion), curve)


def _constraint_inputs() -> list[io.Input]:
    """What is asked of the words' attention, how eagerly, and how much beside others."""
    return [
        io.Combo.Input(
            "constraint",
            options=list(CONSTRAINTS),
            tooltip="Token ratio keeps the structure: colours and textures. Spatial ratio is stronger: shapes.",
        ),
        io.Combo.Input(
            "preset",
            options=[*PRESETS, CUSTOM],
            default=PUBLISHED,
            tooltip="As published: 15 iterations in the first half. Early stop: at most 5, and none once they "
            "raise the words' attention by less than 1 %. Custom: iterations, start, end and gain below; the "
            "others do not use them.",
        ),
        io.Float.Input(
            "weight",
            default=1.0,
            min=0.0,
            max=100.0,
            step=0.05,
            tooltip="Share of the guidance beside other MAG-Edit nodes on this model; alone it has no effect.",
        ),
    ]


def _effort_inputs() -> list[io.Input]:
    """How far and how often the latent is moved; the preset says whether these count."""
    return [
        io.Float.Input(
            "scale",
            default=PUBLISHED_SCALE,
            min=0.0,
            max=1000.0,
            step=0.1,
            tooltip="How far one update goes. Higher is stronger; too high leaves artefacts.",
            advanced=True,
        ),
        io.Int.Input(
            "iterations",
            default=15,
            min=0,
            max=100,
            tooltip="Updates before each step, with preset custom. 0 guides nothing. More is stronger, until artefacts "
            "appear.",
            advanced=True,
        ),
        fraction_input(
            "start",
            0.0,
            "Share of the steps after which guidance begins, with preset custom.",
            advanced=True,
        ),
        fraction_input(
            "end",
            0.5,
            "Share of the steps after which it ends, with preset custom. 0.2 is enough for a colour.",
            advanced=True,
        ),
        fraction_input(
            "gain",
            0.0,
            "Leave a step when an update raises the words' attention by less than this, with preset custom.",
            advanced=True,
        ),
    ]


def _published_inputs() -> list[io.Input]:
    """Maps, blending, memory and words to go away from; the defaults are the paper's."""
    return [
        io.Combo.Input(
            "maps",
            options=list(DETAIL),
            tooltip="Which attention maps are read. Coarse ones know most about meaning (published) and cost least; "
            "take finer ones for small images or very small masks.",
            advanced=True,
        ),
        fraction_input(
            "blend_start",
            0.7,
            "Share of the steps after which the source is kept outside the mask; 1 never.",
            advanced=True,
        ),
        io.Boolean.Input(
            "low_memory",
            default=False,
            tooltip="Compute each block again on the way back instead of keeping it: less memory, half as much work "
            "again.",
            advanced=True,
        ),
        io.String.Input(
            "negative_words",
            default="",
            tooltip="Words of the negative prompt to go away from, separated by commas; empty for none.",
            advanced=True,
        ),
        io.Float.Input(
            "negative_weight",
            default=NEGATIVE_SCALE / PUBLISHED_SCALE,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip="How much the negative words count against the new ones.",
            advanced=True,
        ),
    ]


def _optional_inputs() -> list[io.Input]:
    """The source image, and a prompt to go away from."""
    return [
        InversionSocket.Input(
            "inversion",
            optional=True,
            tooltip="The source image. Without it a new image is drawn, and nothing is kept outside the mask.",
        ),
        io.Conditioning.Input(
            "negative",
            optional=True,
            tooltip="Prompt with words to go away from, such as the old texture. Costs as much again.",
        ),
        PromptSocket.Input("negative_prompt", optional=True, tooltip="The same prompt's words."),
    ]


class GuidanceCurveNode(io.ComfyNode):
    """What guidance did."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditGuidanceCurve",
            display_name="Guidance Curve",
            category=f"{CATEGORY}/methods",
            description="Draws the loss and the words' share of attention over the iterations of the last run, and "
            "says whether the guidance worked. While it runs, the sampler node shows each step's.",
            search_aliases=["mag-edit curve", "guidance loss", "attention ratio", "loss plot"],
            inputs=[
                CurveSocket.Input("curve", tooltip="From MAG-Edit."),
                io.MultiType.Input(
                    "after",
                    types=[io.Latent, io.Image],
                    tooltip="The sampler's latent or the decoded image, so that the curve is drawn after the run.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="plot", tooltip="Loss above, share of attention below."),
                io.String.Output(display_name="report", tooltip="The same in words, with advice if it did not work."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, curve: Any, after: Any) -> io.NodeOutput:
        found = curve.of(after)
        plot = found.picture()
        return io.NodeOutput(plot, found.report(), ui=ui.PreviewImage(plot, cls=cls))


NODES = [MAGNode, GuidanceCurveNode]
