"""Every file of subgraphs/ is what its row makes, is found and placed in ComfyUI's front end, and runs as its workflow.

The graph around it is a user's: a picture, a model, the blueprint, and what saves or shows the results.
"""

from __future__ import annotations

import functools
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from made import picture, prompt_of
from show import blueprints, checkpoints, options, showcase
from show.blueprint_rows import ROWS, Blueprint
from show.workflow_file import Prompt, check_links

if TYPE_CHECKING:
    from machine.comfy_server import ComfyServer
    from playwright.sync_api import Browser, Page

WAIT = 180_000
"""Milliseconds."""
STEPS = 4
"""In place of the workflows' and the blueprints' own numbers."""
MOST_NODES, MOST_LINKS = 6, 8
RUN = ("cpam-replace", "fpe")
"""Whose pictures are compared too; of the others what the server is given."""
LITTLE = ("a", "an", "and", "by", "it", "its", "or", "the", "to", "without")
every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)

# Opens the search, as a double click on the canvas does.
SEARCH = "window.app.extensionManager.command.execute('Workspace.SearchBox.Toggle')"
# Lays out the user's own nodes.
BEGIN = """async ([scene, viewers]) => {
    await window.app.loadGraphData({ last_node_id: 0, last_link_id: 0, nodes: [], links: [], version: 0.4 });
    const add = (type) => {
        const node = LiteGraph.createNode(type);
        window.app.graph.add(node);
        return node;
    };
    const shown = add("AttnEditDemoScene");
    for (const [name, value] of Object.entries(scene))
        shown.widgets.find((widget) => widget.name === name).value = value;
    add("AttnEditDemoModel");
    for (const viewer of viewers) add(viewer);
}"""
PLACED = "() => window.app.graph.nodes.some((node) => node.subgraph && !node.flags.ghost)"
# What a person sees of the blueprint: inputs, outputs, widgets with their values.
SHOWN = """() => {
    const node = window.app.graph.nodes.find((node) => node.subgraph);
    return {
        title: node.title,
        inputs: node.inputs.filter((slot) => !slot.widget).map((slot) => slot.label ?? slot.name),
        outputs: node.outputs.map((slot) => slot.label ?? slot.name),
        widgets: Object.fromEntries(node.widgets.map((widget) => [widget.label ?? widget.name, widget.value])),
        inside: node.subgraph.nodes.map((inner) => inner.type),
    };
}"""
# Connects all of it by name, sets the widgets, and returns what would be queued.
FINISH = """async ([sources, values, viewers]) => {
    const graph = window.app.graph;
    const placed = graph.nodes.find((node) => node.subgraph);
    for (const [name, [type, slot]] of Object.entries(sources))
        graph.nodes.find((node) => node.type === type).connect(slot, placed, name);
    viewers.forEach((type, slot) => placed.connect(slot, graph.nodes.find((node) => node.type === type), 0));
    for (const [name, value] of Object.entries(values))
        placed.widgets.find((widget) => widget.name === name).value = value;
    const { output } = await window.app.graphToPrompt();
    return { output, nodes: graph.nodes.length, links: graph.links.size };
}"""


def subgraph_of(row: Blueprint) -> dict[str, Any]:
    return blueprints.blueprint(row)["definitions"]["subgraphs"][0]


def flat_of(server: ComfyServer, row: Blueprint) -> Prompt:
    """The row's workflow as the server is given it, in few steps, with what is given taken from the scene."""
    flat = prompt_of(server, row.workflow)
    for entry in flat.values():
        if "steps" in entry["inputs"]:
            entry["inputs"]["steps"] = STEPS
        for name in entry["inputs"]:
            if f"{entry['class_type']}.{name}" in row.given:
                entry["inputs"][name] = [the(flat, "AttnEditDemoScene"), 1]
    return flat


def the(prompt: Prompt, kind: str) -> str:
    """The first node of a type."""
    return next(number for number, entry in prompt.items() if entry["class_type"] == kind)


def meaning(prompt: Prompt, value: Any) -> Any:
    """What an input brings, whatever the nodes' numbers: a value, or a node's type, output and own inputs."""
    if not isinstance(value, list):
        return value
    entry = prompt[value[0]]
    given = {name: meaning(prompt, inner) for name, inner in entry["inputs"].items()}
    return {"type": entry["class_type"], "output": value[1], "inputs": given}


@pytest.fixture(scope="module")
def page(server: ComfyServer, browser: Browser) -> Iterator[Page]:
    opened = browser.new_page(viewport={"width": 1600, "height": 1000})
    # No tutorial over everything, and a chosen node is placed at once, without a further click on the canvas.
    server.post("/settings", {"Comfy.TutorialCompleted": True, "Comfy.NodeSearchBoxImpl.FollowCursor": False})
    opened.goto(server.url, timeout=WAIT)
    opened.wait_for_function("window.app && window.app.graph && window.app.extensionManager", timeout=WAIT)
    opened.wait_for_function("Object.keys(LiteGraph.registered_node_types).length > 100", timeout=WAIT)
    yield opened
    opened.close()


def place(page: Page, row: Blueprint) -> None:
    """Find a blueprint by its task's words in the front end's search and put it on the canvas, as a person does."""
    page.evaluate(SEARCH)
    words = " ".join(word for word in row.name.lower().split() if word not in LITTLE)
    page.get_by_role("combobox").last.fill(words)
    page.get_by_test_id("result-item").filter(has_text=row.title).first.click(timeout=WAIT)
    page.wait_for_function(PLACED, timeout=WAIT)


@dataclass(frozen=True)
class Graph:
    """A user's graph with a blueprint: what it shows, and its prompt beside that of the flat workflow."""

    shown: dict[str, Any]
    flat: Prompt
    prompt: Prompt
    nodes: int
    links: int


@pytest.fixture(scope="module")
def graph_of(page: Page, server: ComfyServer) -> Callable[[Blueprint], Graph]:
    """Builds the graph of a row, once for all tests."""
    return functools.cache(functools.partial(build, page, server))


def build(page: Page, server: ComfyServer, row: Blueprint) -> Graph:
    flat = flat_of(server, row)
    scene = flat[the(flat, "AttnEditDemoScene")]["inputs"] if "photo" in names(row) else {}
    viewers = [shown.partition(".")[0] for shown in shows(row).values()]
    page.evaluate(BEGIN, [scene, viewers])
    place(page, row)
    shown = page.evaluate(SHOWN)
    (node,) = blueprints.blueprint(row)["nodes"]
    widgets = [slot["name"] for slot in node["inputs"] if "widget" in slot]
    promoted = zip(widgets, node["properties"]["proxyWidgets"], strict=True)
    values = {name: flat[inside]["inputs"][inner] for name, (inside, inner) in promoted}
    sources = {
        name: [kind, slot]
        for kind, outputs in blueprints.OUTSIDE.items()
        for slot, name in outputs.items()
        if name in names(row)
    }
    made = page.evaluate(FINISH, [sources, values, viewers])
    return Graph(shown, flat, made["output"], made["nodes"], made["links"])


def names(row: Blueprint) -> list[str]:
    return [slot["name"] for slot in subgraph_of(row)["inputs"]]


def shows(row: Blueprint) -> dict[str, str]:
    """The inputs that show each output; a mask that goes on in the workflow is shown in a user's graph."""
    found = {slot["name"]: row.shows[slot["name"]] for slot in subgraph_of(row)["outputs"]}
    return {**found, **({"mask": "MaskPreview.mask"} if "mask" in found else {})}


@every_row
def test_the_file_is_what_the_row_makes(row: Blueprint) -> None:
    """`python demo --blueprints` writes them; no file is edited by hand, and none is left over."""
    made = blueprints.files()
    assert {path.name for path in blueprints.FOLDER.iterdir()} == set(made)
    assert (blueprints.FOLDER / f"{row.title}.json").read_text("utf-8") == made[f"{row.title}.json"]


def test_they_are_written_by_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what no row makes any more is taken out."""
    monkeypatch.setattr(blueprints, "FOLDER", tmp_path)
    monkeypatch.setattr(checkpoints, "write", lambda: [])  # they have a test of their own
    (tmp_path / "of an earlier row.json").write_text("{}", "utf-8")
    assert showcase.demo(options.parse(["--blueprints"])) == 0
    assert {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()} == blueprints.files()


def test_a_row_that_does_not_fit_its_workflow_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        blueprints.blueprint(Blueprint("Nothing", "cpam-replace", "", (), {}))


@every_row
def test_has_the_form_of_a_blueprint(row: Blueprint) -> None:
    """One node, whose type is the one subgraph; its slots are the subgraph's; links and nodes name each other."""
    file = blueprints.blueprint(row)
    (node,), (inner,) = file["nodes"], file["definitions"]["subgraphs"]
    assert node["type"] == inner["id"] == str(uuid.UUID(inner["id"]))
    assert inner["name"] == node["title"] == row.title
    assert file["extra"]["BlueprintDescription"] == inner["description"] and inner["category"]
    for side in ("inputs", "outputs"):
        assert [(slot["name"], slot["type"]) for slot in inner[side]] == [(s["name"], s["type"]) for s in node[side]]
        assert len({slot["name"] for slot in inner[side]}) == len(inner[side])
    ends = [
        {"id": blueprints.INPUT, "outputs": [{"links": slot["linkIds"]} for slot in inner["inputs"]]},
        {"id": blueprints.OUTPUT, "inputs": [{"link": slot["linkIds"][0]} for slot in inner["outputs"]]},
    ]
    assert check_links({"nodes": [*inner["nodes"], *ends], "links": inner["links"]}) == []
    assert len({link["id"] for link in inner["links"]}) == len(inner["links"]) == inner["state"]["lastLinkId"]


@every_row
def test_nothing_of_the_demo_is_inside(row: Blueprint) -> None:
    """Nor notes, previews and saves; and the numbers are those of the papers."""
    kinds = {node["type"] for node in subgraph_of(row)["nodes"]}
    assert not kinds & {"AttnEditDemoScene", "AttnEditDemoModel", "SaveImage", "PreviewImage", "MaskPreview"}
    assert not kinds & {"Note", "MarkdownNote"}
    assert {"model", "clip", "vae"} <= set(names(row))
    assert "photo" in names(row) or row.workflow == "p2p-swap"


def test_the_server_lists_them(server: ComfyServer) -> None:
    listed = server.get("/global_subgraphs")
    ours = {x["name"]: key for key, x in listed.items() if x["info"]["node_pack"] == "custom_nodes.attention-edit"}
    assert set(ours) == {row.title for row in ROWS}
    for row in ROWS:
        assert json.loads(server.get(f"/global_subgraphs/{ours[row.title]}")["data"]) == blueprints.blueprint(row)


@pytest.mark.browser
@every_row
def test_shows_a_person_the_named_inputs(row: Blueprint, graph_of: Callable[[Blueprint], Graph]) -> None:
    """Found by its task's words: sockets and widgets by their names, the papers' values, the inside to be edited."""
    shown, inner = graph_of(row).shown, subgraph_of(row)
    settings = [setting.rpartition(".")[2] for setting in row.settings]
    assert shown["title"] == row.title
    assert shown["inputs"] == [name for name in blueprints.SOCKETS if name in names(row)]
    assert shown["outputs"] == [slot["name"] for slot in inner["outputs"]]
    assert list(shown["widgets"].items()) == [
        *row.texts.items(),
        *((name, blueprints.VALUES[name]) for name in settings),
    ]
    assert sorted(shown["inside"]) == sorted(node["type"] for node in inner["nodes"])


@pytest.mark.browser
@every_row
def test_gives_the_server_what_its_workflow_gives(row: Blueprint, graph_of: Callable[[Blueprint], Graph]) -> None:
    """A graph of few nodes and links; with the workflow's values in its widgets, the server gets the same."""
    graph = graph_of(row)
    assert graph.nodes <= MOST_NODES and graph.links <= MOST_LINKS
    for name, shown in shows(row).items():
        assert shown_at(graph.prompt, shown) == shown_at(graph.flat, row.shows[name]), name


def shown_at(prompt: Prompt, where: str) -> Any:
    """The meaning of "Type.input"."""
    kind, _, slot = where.partition(".")
    return meaning(prompt, prompt[the(prompt, kind)]["inputs"][slot])


@pytest.mark.browser
@pytest.mark.parametrize("row", [row for row in ROWS if row.workflow in RUN], ids=lambda row: row.name)
def test_draws_the_very_picture_of_its_workflow(
    row: Blueprint, graph_of: Callable[[Blueprint], Graph], server: ComfyServer
) -> None:
    pictures = []
    for prompt in (graph_of(row).flat, graph_of(row).prompt):
        server.forget()
        done = server.run(prompt)
        assert the(prompt, "KSampler") in done.executed, "the server had it already"
        pictures.append(picture(server.fetch(done.images(the(prompt, "SaveImage"))[0])))
    assert torch.equal(*pictures)
