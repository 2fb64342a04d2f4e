"""What is seen of a node while it runs: a line of text and a progress bar; and whether it shall stop."""

from __future__ import annotations

import sys
from typing import Any

import comfy.model_management
import comfy.utils
from comfy_execution.utils import get_executing_context


def _server() -> Any:
    """The host's server; None without one, as in a script."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def show(text: str) -> None:
    """Show a line on the running node; without a server nothing happens."""
    server, context = _server(), get_executing_context()
    if server is not None and context is not None:
        server.send_progress_text(text, context.node_id)


def send(event: str, data: dict[str, Any]) -> None:
    """Send the front end a message of ours about the running node; without a server nothing happens."""
    server, context = _server(), get_executing_context()
    if server is not None and context is not None:
        told = {"node": context.node_id, "prompt_id": context.prompt_id, **data}
        server.send_sync(event, told, server.client_id)


def stop_if_cancelled() -> None:
    """Raise the host's InterruptProcessingException if the user has cancelled."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def progress_bar(count: int) -> comfy.utils.ProgressBar:
    """The running node's progress bar of so many steps, which may show a preview."""
    return comfy.utils.ProgressBar(count)


def prompt_id() -> str:
    """Identity of the workflow run that is being executed; empty outside of one."""
    context = get_executing_context()
    return "" if context is None else context.prompt_id
