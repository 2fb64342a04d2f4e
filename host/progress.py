"""A line of text on the node that runs, while it runs."""

from __future__ import annotations

import sys

from comfy_execution.utils import get_executing_context


def show(text: str) -> None:
    """Show a line on the running node; without a server, as in a script, nothing happens."""
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    context = get_executing_context()
    if server is not None and context is not None:
        server.send_progress_text(text, context.node_id)


def prompt_id() -> str:
    """Identity of the workflow run that is being executed; empty outside of one."""
    context = get_executing_context()
    return "" if context is None else context.prompt_id
