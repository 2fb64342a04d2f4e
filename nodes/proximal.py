"""Proximal guidance's node."""

from __future__ import annotations

from typing import Any

from ..attention.engine.install import install
from ..attention.methods.proximal import RULES, ProximalGuidance, ProximalHold
from ..host.schemas import io
from .inputs import fraction_input, inversion_input, model_input, model_output, put
from .sockets import CATEGORY


class ProximalNode(io.ComfyNode):
    """Proximal guidance."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditProximal",
            display_name="Limit the Change (Proximal Guidance)",
            category=f"{CATEGORY}/methods",
            description="Lets guidance act only where the prompts disagree most, and brings the rest back to the "
            "photograph. Made for Negative-Prompt Inversion: with it the edit keeps far more of the image.",
            search_aliases=[
                "proxedit",
                "proximal npi",
                "proxnpi",
                "limit guidance",
                "preserve image",
                "keep background",
            ],
            inputs=[
                model_input(),
                inversion_input(),
                fraction_input(
                    "quantile",
                    0.75,
                    "Share of the values that guidance leaves alone. Higher keeps more of the image and edits less.",
                ),
                io.Combo.Input(
                    "rule",
                    options=list(RULES),
                    default=RULES[0],
                    tooltip="What is above the quantile acts in full (hard), or by what it exceeds it (soft). Released "
                    "is what the published code does: soft, with the quantile over source and target together (0.75 is "
                    "about the target's own 0.5), and the image held below twice the threshold.",
                    advanced=True,
                ),
                fraction_input(
                    "hold_from",
                    0.6,
                    "Share of the steps after which the image is restored wherever guidance did nothing; 1 never.",
                    advanced=True,
                ),
            ],
            outputs=[model_output()],
        )

    @classmethod
    def execute(cls, model: Any, inversion: Any, quantile: float, rule: str, hold_from: float) -> io.NodeOutput:
        guidance = ProximalGuidance(quantile, rule)
        patched = install(model, guidance, inversion)
        return put(patched, ProximalHold(guidance, hold_from), inversion) if hold_from < 1 else io.NodeOutput(patched)


NODES = [ProximalNode]
