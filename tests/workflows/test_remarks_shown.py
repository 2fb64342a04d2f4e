"""Remarks on nodes and errors in toasts in ComfyUI's own front end, after a run, a cached one and on a new page."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from show.workflow_file import read_workflow

if TYPE_CHECKING:
    from machine.comfy_server import ComfyServer
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.server, pytest.mark.browser]
FOLDER = Path(__file__).resolve().parents[2] / "workflows"
SAID = "ancestral adds noise of its own"
WAIT = 180_000
"""Milliseconds."""

# Opens a workflow with widgets set to other values, and queues it.
QUEUE = """async ([workflow, changes]) => {
    if (workflow) await window.app.loadGraphData(workflow);
    for (const [type, name, value] of changes) {
        const node = window.app.graph.nodes.find((node) => node.type === type);
        node.widgets.find((widget) => widget.name === name).value = value;
    }
    window.ended = null;
    for (const kind of ["execution_success", "execution_error"])
        window.app.api.addEventListener(kind, () => { window.ended = kind }, { once: true });
    window.cached = [];
    const note = ({ detail }) => { window.cached = detail.nodes };
    window.app.api.addEventListener("execution_cached", note, { once: true });
    await window.app.queuePrompt(0);
}"""
# What the sampler node shows: its text, the colour of its frame, and its id.
SHOWN = """() => {
    const node = window.app.graph.nodes.find((node) => node.type === "KSampler");
    const text = node.widgets.find((widget) => widget.name === "$$node-text-preview")?.value ?? "";
    return { text, colour: node.strokeStyles.attentionEdit?.()?.color ?? "", id: String(node.id) };
}"""
FAST = [["AttnEditInvert", "steps", 4], ["KSampler", "seed", 11], ["KSampler", "control_after_generate", "fixed"]]


@pytest.fixture(scope="module")
def page(server: ComfyServer, browser: Browser) -> Iterator[Page]:
    opened = browser.new_page()
    server.post("/settings", {"Comfy.TutorialCompleted": True})
    _go(opened, server)
    yield opened
    opened.close()


def _go(page: Page, server: ComfyServer) -> None:
    page.goto(server.url, timeout=180_000)
    page.wait_for_function("window.app && window.app.graph && window.app.extensionManager", timeout=WAIT)
    page.wait_for_function("Object.keys(LiteGraph.registered_node_types).length > 100", timeout=WAIT)


@pytest.fixture
def workflow() -> dict[str, Any]:
    """One with an identity, as the front end gives it when it is saved."""
    found = json.loads(json.dumps(read_workflow(FOLDER / "cpam-replace.json")))
    return {**found, "id": str(uuid.uuid4())}


def _run(page: Page, workflow: Any, *changes: list[Any]) -> str:
    page.evaluate(QUEUE, [workflow, list(changes)])
    page.wait_for_function("window.ended", timeout=WAIT)
    return page.evaluate("window.ended")


def test_a_remark_stays_on_the_node(page: Page, server: ComfyServer, workflow: dict[str, Any]) -> None:
    ancestral = [*FAST, ["KSampler", "sampler_name", "euler_ancestral"]]
    assert _run(page, workflow, *ancestral) == "execution_success"
    page.wait_for_function(f"({SHOWN})().text.includes('{SAID}') && ({SHOWN})().colour", timeout=WAIT)
    first = page.evaluate(SHOWN)
    assert "Edit Setup: 3 steps from noise level" in first["text"]
    assert "own schedule of" in first["text"]

    assert _run(page, None) == "execution_success"  # the host answers from its cache
    assert first["id"] in page.evaluate("window.cached")
    assert page.evaluate(SHOWN) == first

    _go(page, server)
    assert _run(page, workflow, *ancestral) == "execution_success"
    assert first["id"] in page.evaluate("window.cached")
    assert page.evaluate(SHOWN) == first

    assert _run(page, None, ["KSampler", "sampler_name", "euler"]) == "execution_success"
    page.wait_for_function(f"({SHOWN})().text.includes('sampler euler,')", timeout=WAIT)
    again = page.evaluate(SHOWN)
    assert SAID not in again["text"] and not again["colour"]


def test_an_error_of_the_pack_is_said_in_a_toast(page: Page, workflow: dict[str, Any]) -> None:
    assert _run(page, workflow, *FAST, ["AttnEditSetup", "denoise", 0.01]) == "execution_error"
    toast = page.locator(".p-toast-message", has_text="none of the inversion's 3 steps is left")
    toast.wait_for(timeout=WAIT)
    assert "Edit Setup" in (toast.text_content() or "")
