"""Every file of subgraphs/ is what its row makes, is found and placed in ComfyUI's front end, and runs as its workflow.

The graph around it is a user's: a picture, a model, the blueprint, and what saves or shows the results.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch
from made import picture, prompt_of
from show import blueprints
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
PLACED = "() => window.app.graph.nodes.find((node) => node.subgraph && !node.flags.ghost)"
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
    server.post("/settings", {"Comfy.TutorialCompleted": True})
    opened.goto(server.url)
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
    page.mouse.click(800, 500)
    page.wait_for_function(PLACED, timeout=WAIT)


def built(page: Page, server: ComfyServer, row: Blueprint) -> tuple[Prompt, dict[str, Any]]:
    """The flat workflow, and what the front end makes of a user's graph with the blueprint."""
    flat = flat_of(server, row)
    scene = flat.get(the(flat, "AttnEditDemoScene"), {})["inputs"] if "photo" in names(row) else {}
    viewers = [shown.partition(".")[0] for shown in shows(row).values()]
    page.evaluate(BEGIN, [scene, viewers])
    place(page, row)
    file = blueprints.blueprint(row)
    widgets = [slot["name"] for slot in file["nodes"][0]["inputs"] if "widget" in slot]
    promoted = file["nodes"][0]["properties"]["proxyWidgets"]
    values = {name: flat[node]["inputs"][inner] for name, (node, inner) in zip(widgets, promoted, strict=True)}
    sources = {
        name: [kind, slot]
        for kind, outputs in blueprints.OUTSIDE.items()
        for slot, name in outputs.items()
        if name in names(row)
    }
    return flat, page.evaluate(FINISH, [sources, values, viewers])


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
def test_gives_the_server_what_its_workflow_gives(row: Blueprint, page: Page, server: ComfyServer) -> None:
    """Placed by a search for its task, in a graph of few nodes and links, with the same values as the workflow's."""
    flat, ours = built(page, server, row)
    assert ours["nodes"] <= MOST_NODES and ours["links"] <= MOST_LINKS
    for name, shown in shows(row).items():
        kind, _, slot = shown.partition(".")
        of_ours = ours["output"][the(ours["output"], kind)]["inputs"][slot]
        original, _, slot = row.shows[name].partition(".")
        assert meaning(ours["output"], of_ours) == meaning(flat, flat[the(flat, original)]["inputs"][slot]), name


@pytest.mark.browser
@every_row
def test_shows_a_person_the_named_inputs(row: Blueprint, page: Page) -> None:
    """Sockets, outputs and widgets by their names, with the papers' values, and the inside to be edited."""
    page.evaluate(BEGIN, [{}, []])
    place(page, row)
    shown, inner = page.evaluate(SHOWN), subgraph_of(row)
    sockets = [slot["name"] for slot in inner["inputs"] if slot["name"] in blueprints.SOCKETS]
    settings = [setting.rpartition(".")[2] for setting in row.settings]
    assert shown["title"] == row.title
    assert shown["inputs"] == sockets
    assert shown["outputs"] == [slot["name"] for slot in inner["outputs"]]
    assert list(shown["widgets"]) == [*row.texts, *settings]
    assert shown["widgets"] == {**row.texts, **{name: blueprints.VALUES[name] for name in settings}}
    assert sorted(shown["inside"]) == sorted(node["type"] for node in inner["nodes"])


@pytest.mark.browser
@pytest.mark.parametrize("name", RUN)
def test_draws_the_very_picture_of_its_workflow(name: str, page: Page, server: ComfyServer) -> None:
    row = next(row for row in ROWS if row.workflow == name)
    flat, ours = built(page, server, row)
    pictures = []
    for prompt in (flat, ours["output"]):
        server.post("/free", {"unload_models": True, "free_memory": True})
        done = server.run(prompt)
        assert the(prompt, "KSampler") in done.executed
        pictures.append(picture(server.fetch(done.images(the(prompt, "SaveImage"))[0])))
    assert torch.equal(*pictures)
