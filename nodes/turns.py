"""The result of one edit as the source of the next."""

from __future__ import annotations

from typing import Any

from ..attention.engine.turns import turn_of
from ..host.schemas import io
from ..inversion.origin import with_source_guidance
from .sockets import CATEGORY, InversionSocket


class NextTurnNode(io.ComfyNode):
    """Edit of an edit."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditNextTurn",
            display_name="Edit an Edit (Next Turn)",
            category=CATEGORY,
            description="Makes the result of an edit the source image of the next one, without decoding, encoding and "
            "inverting it: its steps are known. What the edits keep exactly stays exact over any number of turns. Put "
            "the next edit on the model as it was before the first one.",
            search_aliases=[
                "multi-turn editing",
                "edit again",
                "edit the result",
                "sequential edits",
                "edit chain",
                "iterative editing",
                "second edit",
            ],
            inputs=[
                io.Model.Input("model", tooltip="Edit Setup's model, with its record_turn on: what the sampler runs."),
                io.Latent.Input("latent", tooltip="The latent of the sampler that runs this model."),
                io.Conditioning.Input(
                    "source",
                    optional=True,
                    tooltip="Source prompt of the edited image. Without it the positive prompt that it was sampled "
                    "with, as methods with captions need; for CPAM connect an empty text.",
                ),
            ],
            outputs=[
                InversionSocket.Output(
                    display_name="inversion", tooltip="The edited image's whole trajectory, for the next edit's nodes."
                )
            ],
        )

    @classmethod
    def execute(cls, model: Any, latent: dict[str, Any], source: list[Any] | None = None) -> io.NodeOutput:
        prompt = with_source_guidance(model, source) if source else None
        return io.NodeOutput(turn_of(model, latent).inversion(prompt))


NODES = [NextTurnNode]
