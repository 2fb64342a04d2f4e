"""Attention Edit: edit real photographs from text by controlling the attention of Stable Diffusion."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io
from typing_extensions import override

WEB_DIRECTORY = "./js"


class AttentionEdit(ComfyExtension):
    """What the host asks for the pack's nodes."""

    @override
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        from .nodes import NODES

        return NODES


async def comfy_entrypoint() -> AttentionEdit:
    """The host's way in."""
    return AttentionEdit()


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
