"""Dynamic Prompt Learning, and the background mask that it works with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ..attention.methods.dpl.settings import DPL_PRESETS
from ..host.schemas import io
from .inputs import disk_cache_input, fraction_input, guidance_input, inversion_input, source_prompt_input
from .inversion_methods import UNEDITED, better_outputs, show_improved
from .sockets import CATEGORY


def _nouns_input() -> io.Input:
    return io.String.Input(
        "nouns",
        default="",
        tooltip="The prompt's nouns whose objects are in the picture, with commas between: cat, dog. cat#2 is the "
        "second cat.",
    )


def _learning_inputs() -> list[io.Input]:
    """How the nouns and the null text are learned."""
    return [
        io.Combo.Input(
            "settings",
            options=list(DPL_PRESETS),
            default=next(iter(DPL_PRESETS)),
            tooltip="The released code's: AdamW, means, 51 null-text updates from the empty prompt. The "
            "paper's: gradient descent until all losses are low enough, sums, null-text inversion as it is.",
        ),
        io.Int.Input(
            "iterations",
            default=0,
            min=0,
            max=1000,
            tooltip="Updates of the nouns per step at most; 0 is the settings' own (21; paper 50).",
            advanced=True,
        ),
        io.Int.Input(
            "null_iterations",
            default=0,
            min=0,
            max=1000,
            tooltip="Updates of the null text per step at most; 0 is the settings' own (51; paper 10).",
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


class DPLNode(io.ComfyNode):
    """Dynamic Prompt Learning's inversion."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditDPL",
            display_name="Learn Nouns (Dynamic Prompt Learning)",
            category=f"{CATEGORY}/inversion",
            description="Learns the nouns of the caption anew for every step, so that each looks at its own object and "
            "not at others or the background, and a null text with them. For pictures of several alike objects. Slow "
            "(gradients), once per image.",
            search_aliases=["dpl", "dynamic prompt", "attention leakage", "token optimization", "learned embedding"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip=UNEDITED),
                io.Clip.Input("clip", tooltip="The CLIP that the source prompt was encoded with."),
                inversion_input(),
                source_prompt_input(),
                io.Conditioning.Input("negative", tooltip="The null text to begin with: an empty prompt."),
                _nouns_input(),
                guidance_input(7.5, "The guidance scale (cfg) that the edit will use; other scales drift."),
                *_learning_inputs(),
                io.Mask.Input(
                    "background",
                    optional=True,
                    tooltip="Where no noun shall look. Without it Background Mask's rule finds it.",
                ),
                disk_cache_input(),
            ],
            outputs=better_outputs("Relative error of the latent at every step of guided sampling."),
        )

    @classmethod
    def execute(  # noqa: PLR0913, PLR0917 (one argument per input)
        cls,
        model: Any,
        clip: Any,
        inversion: Any,
        source_prompt: Any,
        negative: list[Any],
        nouns: str,
        guidance: float,
        settings: str,
        iterations: int,
        null_iterations: int,
        save_memory: bool,
        background: torch.Tensor | None = None,
        disk_cache: bool = False,
    ) -> io.NodeOutput:
        from ..attention.methods.dpl.inversion import DynamicPromptLearning

        chosen = DPL_PRESETS[settings]
        null = replace(chosen.null, inner=null_iterations or chosen.null.inner, checkpointing=save_memory)
        chosen = replace(chosen, iterations=iterations or chosen.iterations, null=null)
        improvement = DynamicPromptLearning(clip, source_prompt, nouns, chosen, background)
        return show_improved(cls, improvement, model, inversion, negative, guidance, disk_cache)


class BackgroundMaskNode(io.ComfyNode):
    """The background of an inverted image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditBackgroundMask",
            display_name="Background Mask",
            category=f"{CATEGORY}/attention maps",
            description="Finds what in an inverted picture goes with none of the nouns: self-attention cut into "
            "clusters, and the clusters that no noun looks at.",
            search_aliases=[
                "background mask",
                "foreground mask",
                "dpl background",
                "segmentation",
                "remove background",
                "mask from text",
            ],
            inputs=[
                io.Model.Input("model", tooltip=UNEDITED),
                inversion_input(),
                source_prompt_input(),
                _nouns_input(),
                io.Int.Input("clusters", default=5, min=2, max=20, tooltip="How many parts (the paper's V = 5)."),
                fraction_input("least_agreement", 0.2, "A part whose mean map of every noun is below is background."),
                io.Int.Input(
                    "clustering_seed", default=1, min=0, max=0xFFFFFFFF, tooltip="Of its random starts.", advanced=True
                ),
            ],
            outputs=[
                io.Mask.Output(display_name="background", tooltip="What goes with no noun."),
                io.Mask.Output(display_name="objects", tooltip="All the rest."),
                io.Image.Output(display_name="clusters", tooltip="The parts in colours, with the nouns they go with."),
                io.String.Output(display_name="report", tooltip="Noun and share of the image of each part."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        inversion: Any,
        source_prompt: Any,
        nouns: str,
        clusters: int,
        least_agreement: float,
        clustering_seed: int,
    ) -> io.NodeOutput:
        from ..attention.methods.dpl.background import Clustering, background_regions
        from ..attention.methods.dpl.nouns import find_nouns

        named = find_nouns(source_prompt, nouns)
        places = dict(zip(named.names, named.places, strict=True))
        how = Clustering(clusters, least_agreement, clustering_seed)
        found, cost = background_regions(model, inversion, source_prompt, places, how)
        mask = torch.stack([region.background() for region in found])
        return io.NodeOutput(
            mask.float(),
            (~mask).float(),
            torch.stack([region.picture() for region in found]),
            "\n\n".join([*(region.report() for region in found), f"It took {cost.describe()}."]),
        )


NODES = [DPLNode, BackgroundMaskNode]
