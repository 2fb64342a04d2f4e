"""Every file of workflows/ opens in ComfyUI's front end and converts there as demo/show/workflow_file.py does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from show.workflow_file import WorkflowError, check_links, override, read_workflow, to_prompt, without_download

if TYPE_CHECKING:
    from machine.comfy_server import ComfyServer
    from playwright.sync_api import Browser, Page

FOLDER = Path(__file__).resolve().parents[2] / "workflows"
FILES = sorted(FOLDER.glob("*.json"))
THUMBNAILS = (".jpg", ".png", ".webp")
LOADERS = ["CLIPLoader", "UNETLoader", "VAELoader"]
every_workflow = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)

# Loads the workflow as File > Open does and returns what the front end would queue.
OPEN = """async (workflow) => {
    const app = window.app;
    await app.loadGraphData(workflow);
    const known = LiteGraph.registered_node_types;
    const missing = app.graph.nodes.filter((node) => node.has_errors || !(node.type in known));
    const { output, workflow: saved } = await app.graphToPrompt();
    return { output, saved, missing: missing.map((node) => node.type), count: app.graph.nodes.length };
}"""


class FrontEnd:
    """The page of the front end, with everything that it said on the console."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.problems: list[str] = []
        page.on("console", lambda message: self._note(message.type, message.text, message.location.get("url", "")))
        page.on("pageerror", lambda error: self.problems.append(f"uncaught: {error}"))

    def _note(self, kind: str, text: str, url: str) -> None:
        # What is not from this machine's server cannot be there in a test without a network; the front end's own
        # default page asks for it, and its policy's refusal is told as an error of the page.
        elsewhere = "https://" in text or "Content Security Policy" in text
        if kind == "error" and not elsewhere and (not url or "127.0.0.1" in url):
            self.problems.append(f"{text} {url}".strip())

    def open(self, workflow: Any) -> dict[str, Any]:
        """Load a workflow; returns the API prompt, the saved form and the missing nodes."""
        self.problems.clear()
        return self.page.evaluate(OPEN, workflow)


@pytest.fixture(scope="module")
def front_end(server: ComfyServer, browser: Browser) -> Iterator[FrontEnd]:
    server.upload(FOLDER / "photo-edit.jpg", "example.png")  # each ComfyUI has one in its input folder
    page = browser.new_page()
    opened = FrontEnd(page)
    # The first visit asks whether to show the tutorial, in a dialog over everything.
    server.post("/settings", {"Comfy.TutorialCompleted": True})
    page.goto(server.url, timeout=180_000)
    page.wait_for_function("window.app && window.app.graph && window.app.extensionManager", timeout=120_000)
    page.wait_for_function("Object.keys(LiteGraph.registered_node_types).length > 100", timeout=120_000)
    yield opened
    page.close()


def test_there_are_workflows() -> None:
    assert FILES, f"no workflow in {FOLDER}"


@every_workflow
def test_links_are_valid(path: Path) -> None:
    assert check_links(read_workflow(path)) == []


@every_workflow
def test_has_a_thumbnail(path: Path) -> None:
    """The template browser shows the picture of the same name."""
    pictures = [path.with_suffix(suffix) for suffix in THUMBNAILS if path.with_suffix(suffix).is_file()]
    assert len(pictures) == 1
    with Image.open(pictures[0]) as picture:
        assert min(picture.size) >= 128


@every_workflow
def test_has_a_note(path: Path) -> None:
    notes = [node for node in read_workflow(path)["nodes"] if node["type"] in ("Note", "MarkdownNote")]
    assert any(str(node["widgets_values"][0]).strip() for node in notes), "no note says what the workflow does"


@every_workflow
def test_is_listed_as_template(path: Path, server: ComfyServer) -> None:
    assert path.stem in server.get("/workflow_templates")["attention-edit"]


@pytest.mark.browser
@every_workflow
def test_opens_in_the_front_end(path: Path, front_end: FrontEnd, server: ComfyServer) -> None:
    """No missing node, no console error, and the same prompt as ours.

    What a person has to fetch is marked on the loaders, and on nothing else.
    """
    workflow = read_workflow(path)
    opened = front_end.open(workflow)
    assert sorted(opened["missing"]) == ([] if path in without_download(FOLDER) else LOADERS)
    assert opened["count"] == len(workflow["nodes"])
    assert front_end.problems == []
    assert to_prompt(workflow, server.object_info()) == opened["output"]


def _node(number: int, kind: str, inputs: list[Any], outputs: list[Any], values: list[Any], mode: int = 0) -> Any:
    place = {"pos": [number * 50, 0], "size": [200, 100], "flags": {}, "order": number, "properties": {}}
    return {
        "id": number,
        "type": kind,
        "inputs": inputs,
        "outputs": outputs,
        "mode": mode,
        "widgets_values": values,
        **place,
    }


def _takes(name: str, link: int | None, kind: str = "IMAGE", widget: bool = False) -> dict[str, Any]:
    return {"name": name, "type": kind, "link": link, **({"widget": {"name": name}} if widget else {})}


def _case_nodes() -> list[Any]:
    """One node of each kind that the conversion has to mind."""
    image = {"name": "IMAGE", "type": "IMAGE"}
    return [
        _node(1, "EmptyImage", [_takes("width", 6, "INT", True)], [{**image, "links": [1]}], [64, 32, 1, 255]),
        _node(2, "Reroute", [_takes("", 1, "*")], [{"name": "", "type": "IMAGE", "links": [2]}], []),
        _node(3, "ImageInvert", [_takes("image", 2)], [{**image, "links": [3]}], [], mode=4),
        _node(4, "PreviewImage", [_takes("images", 3)], [], []),
        _node(5, "ImageInvert", [_takes("image", None)], [{**image, "links": [5]}], [], mode=2),
        _node(6, "SaveImage", [_takes("images", 5)], [], ["prefix"]),
        _node(
            7,
            "PrimitiveNode",
            [],
            [{"name": "INT", "type": "INT", "links": [6], "widget": {"name": "width"}}],
            [48, "fixed"],
        ),
        _node(8, "Note", [], [], ["words // and {braces}"]),
        _node(9, "MarkdownNote", [], [], ["# words"]),
        _node(
            10,
            "KSampler",
            [_takes("model", None, "MODEL")],
            [{"name": "LATENT", "type": "LATENT", "links": []}],
            [11, "randomize", 3, 4.5, "euler", "normal", 0.5],
        ),
        _node(
            11,
            "CLIPTextEncode",
            [_takes("clip", None, "CLIP")],
            [{"name": "CONDITIONING", "type": "CONDITIONING", "links": []}],
            ["a cat // comment\nsits /* not */ here \\{x\\}"],
        ),
        _node(12, "RandomNoise", [], [{"name": "NOISE", "type": "NOISE", "links": []}], [5, "fixed"]),
    ]


def _all_cases() -> dict[str, Any]:
    """What the conversion has to mind: reroute, primitive, bypassed and muted nodes, seeds, notes."""
    nodes = _case_nodes()
    nodes[9]["title"] = "Sampler"
    links = [
        [1, 1, 0, 2, 0, "*"],
        [2, 2, 0, 3, 0, "IMAGE"],
        [3, 3, 0, 4, 0, "IMAGE"],
        [5, 5, 0, 6, 0, "IMAGE"],
        [6, 7, 0, 1, 0, "INT"],
    ]
    return {
        "last_node_id": 12,
        "last_link_id": 6,
        "nodes": nodes,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def test_conversion_by_hand(server: ComfyServer) -> None:
    prompt = to_prompt(_all_cases(), server.object_info())
    assert set(prompt) == {"1", "4", "6", "10", "11", "12"}
    assert prompt["1"]["inputs"] == {"width": 48, "height": 32, "batch_size": 1, "color": 255}
    assert prompt["4"]["inputs"] == {"images": ["1", 0]}
    assert prompt["6"]["inputs"] == {"filename_prefix": "prefix"}
    assert prompt["10"]["_meta"] == {"title": "Sampler"}
    assert prompt["10"]["inputs"] == {
        **{"seed": 11, "steps": 3, "cfg": 4.5},
        **{"sampler_name": "euler", "scheduler": "normal", "denoise": 0.5},
    }
    assert prompt["11"]["inputs"] == {"text": "a cat \nsits  here {x}"}
    assert prompt["12"]["inputs"] == {"noise_seed": 5}


@pytest.mark.browser
def test_conversion_as_the_front_end(front_end: FrontEnd, server: ComfyServer) -> None:
    """The same on what was loaded and on what the front end writes back."""
    opened = front_end.open(_all_cases())
    ours = to_prompt(_all_cases(), server.object_info())
    assert ours == opened["output"]
    assert to_prompt(opened["saved"], server.object_info()) == opened["output"]


def test_override(server: ComfyServer) -> None:
    prompt = to_prompt(_all_cases(), server.object_info())
    override(prompt, "Sampler", seed=3)
    override(prompt, 10, steps=9)
    override(prompt, "RandomNoise", noise_seed=8)
    assert (prompt["10"]["inputs"]["seed"], prompt["10"]["inputs"]["steps"]) == (3, 9)
    assert prompt["12"]["inputs"]["noise_seed"] == 8
    with pytest.raises(WorkflowError, match=r"No node .*'Nope'; there are .*10: Sampler"):
        override(prompt, "Nope", seed=1)
    with pytest.raises(WorkflowError, match="no input 'sead'; it has cfg"):
        override(prompt, 10, sead=1)
    with pytest.raises(WorkflowError, match="connected to node 1"):
        override(prompt, 4, images=1)


def test_conversion_refuses(server: ComfyServer, tmp_path: Path) -> None:
    info = server.object_info()
    random = _all_cases()
    random["nodes"][10]["widgets_values"] = ["a {red|blue} cat"]
    with pytest.raises(WorkflowError, match=r"Node 11 \(CLIPTextEncode\), text, has a random choice"):
        to_prompt(random, info)
    unknown = _all_cases()
    unknown["nodes"][0]["type"] = "NoSuchNode"
    with pytest.raises(WorkflowError, match=r"Node 1 .*no node 'NoSuchNode'"):
        to_prompt(unknown, info)
    nested = _all_cases()
    nested["definitions"] = {"subgraphs": [{"id": "EmptyImage", "name": "My part"}]}
    with pytest.raises(WorkflowError, match="subgraph 'My part'"):
        to_prompt(nested, info)
    (tmp_path / "api.json").write_text(json.dumps({"1": {"class_type": "EmptyImage", "inputs": {}}}))
    with pytest.raises(WorkflowError, match=r"api\.json has no nodes and links"):
        read_workflow(tmp_path / "api.json")


def test_broken_links_are_found() -> None:
    workflow = _all_cases()
    assert check_links(workflow) == []
    workflow["links"][0][3] = 99
    workflow["nodes"][3]["inputs"][0]["link"] = 77
    wrong = check_links(workflow)
    assert "link 1: input 0 of node 99 does not name it" in wrong
    assert "node 4 names link 77, which does not exist" in wrong
