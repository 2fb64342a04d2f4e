"""What is seen of a node while it runs: a line of text and a progress bar; and whether it shall stop."""

from __future__ import annotations

import sys

import comfy.model_management
import comfy.utils
from comfy_execution.utils import get_executing_context


def show(text: str) -> None:
    """Show a line on the running node; without a server, as in a script, nothing happens."""
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    context = get_executing_context()
    if server is not None and context is not None:
        server.send_progress_text(text, context.node_id)


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
