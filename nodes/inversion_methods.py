"""Nodes that make a better inversion of a DDIM Inversion's."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import ui

from ..host.schemas import io
from ..inversion import report
from ..inversion.direct import DirectInversion
from ..inversion.fixed_point import FixedPointInversion
from ..inversion.improvement import Improvement
from ..inversion.negative_prompt import NegativePromptInversion
from ..inversion.null_text import NullTextInversion
from .inputs import disk_cache_input, guidance_input, inversion_input
from .sockets import CATEGORY, InversionSocket

START = ("negative prompt", "source prompt")
UNEDITED = "The model without edits that the image was inverted with."


def better_outputs(plot: str) -> list[io.Output]:
    """What a node that makes a better inversion gives out; `plot` says what its plot shows."""
    return [
        InversionSocket.Output(display_name="inversion", tooltip="For edit nodes, in place of DDIM Inversion's."),
        io.Image.Output(display_name="error plot", tooltip=plot),
        io.String.Output(display_name="report", tooltip="UNet evaluations, seconds and memory."),
    ]


def show_improved(node: type[io.ComfyNode], improvement: Improvement, *given: Any) -> io.NodeOutput:
    """What a node gives out and shows of an improvement; `given` as `report.improved` takes it."""
    found, pictures, text = report.improved(improvement, *given)
    return io.NodeOutput(found, pictures[:1], text, ui=ui.PreviewImage(pictures, cls=node))


def _optimiser_inputs() -> list[io.Input]:
    """How a null text is optimised."""
    return [
        io.Int.Input(
            "inner_steps",
            default=10,
            min=0,
            max=100,
            tooltip="Updates per step at most. 10 as in the paper; 3 is a faster preview.",
        ),
        io.Float.Input(
            "learning_rate",
            default=0.01,
            min=0.0001,
            max=1.0,
            step=0.0001,
            round=0.0001,
            tooltip="Adam's rate at the first step; it falls by half until the last.",
            advanced=True,
        ),
        io.Float.Input(
            "early_stop",
            default=1.0,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip="Scales the paper's rule by which a step ends early (loss below 1e-5 + 2e-5 i). 0 never "
            "ends early; more is faster and less exact.",
            advanced=True,
        ),
        io.Boolean.Input(
            "keep_best",
            default=False,
            tooltip="Take the best update of each step instead of the last, which the paper takes.",
            advanced=True,
        ),
        io.Combo.Input(
            "start_from",
            options=list(START),
            default=START[0],
            tooltip="Begin with the negative prompt as the paper, or with the source prompt, which is nearer.",
            advanced=True,
        ),
        io.Boolean.Input(
            "save_memory",
            default=True,
            tooltip="Compute blocks twice instead of keeping them in memory: less than half the memory, a "
            "third more time.",
            advanced=True,
        ),
    ]


class NullTextNode(io.ComfyNode):
    """Null-text inversion."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditNullText",
            display_name="Null-Text Inversion",
            category=f"{CATEGORY}/inversion",
            description="Optimises the unconditional text of every step, so that sampling with guidance finds the "
            "photograph again. Needs a caption in DDIM Inversion. Slow (gradients), once per image.",
            search_aliases=["null text optimization", "nti", "null-text", "optimise embedding"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip=UNEDITED),
                inversion_input(),
                io.Conditioning.Input("negative", tooltip="The text to begin with: an empty prompt."),
                guidance_input(7.5, "The guidance scale (cfg) that the edit will use; other scales drift."),
                *_optimiser_inputs(),
                disk_cache_input(),
            ],
            outputs=better_outputs("Relative error of the latent at every step of guided sampling."),
        )

    @classmethod
    def execute(  # noqa: PLR0913, PLR0917 (one argument per input)
        cls,
        model: Any,
        inversion: Any,
        negative: list[Any],
        guidance: float,
        inner_steps: int,
        learning_rate: float,
        early_stop: float,
        keep_best: bool,
        start_from: str,
        save_memory: bool,
        disk_cache: bool = False,
    ) -> io.NodeOutput:
        warm = start_from == START[1]
        bound = early_stop * NullTextInversion.early_stop
        improvement = NullTextInversion(inner_steps, learning_rate, bound, keep_best, warm, save_memory)
        return show_improved(cls, improvement, model, inversion, negative, guidance, disk_cache)


class NegativePromptNode(io.ComfyNode):
    """Negative-prompt inversion."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditNegativePrompt",
            display_name="Negative-Prompt Inversion",
            category=f"{CATEGORY}/inversion",
            description="Puts the source prompt in the negative prompt's place, so that guidance does not drive the "
            "source away. Costs nothing; nearly as good as Null-Text Inversion. Needs a caption in DDIM Inversion.",
            search_aliases=["npi", "negative prompt inversion", "null text without optimization"],
            inputs=[
                inversion_input(),
                io.Float.Input(
                    "interpolation",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="0 takes the source prompt; more goes towards the negative prompt, which edits more and "
                    "keeps less.",
                    advanced=True,
                ),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="An empty prompt, needed for an interpolation above 0."
                ),
            ],
            outputs=[better_outputs("")[0]],
        )

    @classmethod
    def execute(cls, inversion: Any, interpolation: float, negative: list[Any] | None = None) -> io.NodeOutput:
        found = NegativePromptInversion(interpolation)(None, inversion, negative, 1.0)
        return io.NodeOutput(found.inversion)


class FixedPointNode(io.ComfyNode):
    """Fixed-point inversion."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditFixedPoint",
            display_name="Fixed-Point Inversion",
            category=f"{CATEGORY}/inversion",
            description="Repeats each step of the inversion until the sampler takes it back exactly, at the guidance "
            "of your choice. Better reconstruction than DDIM Inversion without any gradient.",
            search_aliases=["aidi", "renoise", "fixed point iteration", "iterative inversion", "exact inversion"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip=UNEDITED),
                inversion_input(),
                guidance_input(
                    1.0,
                    "The guidance scale at which sampling shall find the image again. Above 3 it may not "
                    "settle; the plot shows what is left.",
                ),
                io.Int.Input(
                    "iterations",
                    default=10,
                    min=1,
                    max=100,
                    tooltip="UNet evaluations per step at most. 1 is DDIM Inversion.",
                ),
                io.Float.Input(
                    "tolerance",
                    default=0.0001,
                    min=0.000001,
                    max=0.1,
                    step=0.000001,
                    round=0.000001,
                    tooltip="Relative change of the latent under which a step is done.",
                    advanced=True,
                ),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="Negative prompt, needed when guidance is not 1."
                ),
                disk_cache_input(),
            ],
            outputs=better_outputs("How much of each step the sampler would miss."),
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        inversion: Any,
        guidance: float,
        iterations: int,
        tolerance: float,
        negative: list[Any] | None = None,
        disk_cache: bool = False,
    ) -> io.NodeOutput:
        improvement = FixedPointInversion(tolerance, iterations)
        return show_improved(cls, improvement, model, inversion, negative, guidance, disk_cache)


class DirectNode(io.ComfyNode):
    """Direct inversion's strength."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditDirect",
            display_name="Direct Inversion",
            category=f"{CATEGORY}/inversion",
            description="Edits of this pack read the source's stored trajectory, which is direct inversion already. "
            "This node weakens it: only a share of the way back to the trajectory, or only at every k-th step.",
            search_aliases=["pnp inversion", "direct inversion", "pie bench", "offset scale"],
            inputs=[
                io.Model.Input("model", tooltip=UNEDITED),
                inversion_input(),
                io.Float.Input(
                    "scale",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of the offset that is added. 1 is the stored trajectory itself, at no cost; 0 is "
                    "plain sampling from the inverted noise.",
                ),
                io.Int.Input("every", default=1, min=1, max=1000, tooltip="Add it at every k-th step only."),
                guidance_input(7.5, "The edit's guidance scale (cfg)."),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="The edit's negative prompt, needed when guidance is not 1."
                ),
            ],
            outputs=[better_outputs("")[0]],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        inversion: Any,
        scale: float,
        every: int,
        guidance: float,
        negative: list[Any] | None = None,
    ) -> io.NodeOutput:
        return io.NodeOutput(DirectInversion(scale, every)(model, inversion, negative, guidance).inversion)


NODES = [NullTextNode, NegativePromptNode, FixedPointNode, DirectNode]
