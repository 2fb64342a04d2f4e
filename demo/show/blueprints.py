"""Make the subgraph blueprints of subgraphs/ from the shipped workflows: `python demo --blueprints`.

ComfyUI serves these files at /global_subgraphs, and its node search offers each as one node. Inside is the workflow
between photograph and model on one side and the picture on the other: no demo node, note, preview or save. What was
linked across becomes the node's inputs and outputs, the texts and a few settings become its widgets, and the values
are those of the papers for real checkpoints. Standard library only.
"""

from __future__ import annotations

import copy
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from show.blueprint_rows import ROWS, Blueprint
from show.workflow_file import Link, links_of, read_workflow

PACK = Path(__file__).resolve().parents[2]
WORKFLOWS, FOLDER = PACK / "workflows", PACK / "subgraphs"
CATEGORY = "Image generation and editing/Attention Edit"
OUTSIDE = {
    "AttnEditDemoScene": {0: "photo", 1: "mask", 3: "second mask"},
    "AttnEditDemoModel": {0: "model", 1: "clip", 2: "vae"},
}
"""The nodes that a user's own loaders take the place of: the names of their outputs."""
SOCKETS = ("photo", "mask", "second mask", "model", "clip", "vae")
"""The order of inputs; an input that is given follows its name."""
TEXTS = {"CLIPTextEncode": "text", "AttnEditPrompt": "text", "AttnEditMapMask": "words"}
"""Widgets that hold what a person writes, unless they are empty."""
ALIKE = {"guidance": "cfg"}
"""Widgets that mean the same under another name."""
VALUES = {"steps": 50, "cfg": 7.5, "dilation": 0.1, "seed": 0, "width": 512, "height": 512}
"""For real checkpoints, as the papers have them; the workflows' own numbers suit the demo model."""
INPUT, OUTPUT = -10, -20
"""The ids that the front end gives a subgraph's two ends."""
GAP, WIDTH, ROW = 120, 140, 20
"""Pixels between the nodes and the ends, an end's width, and the height of one slot."""
IDS = uuid.uuid5(uuid.NAMESPACE_URL, "https://github.com/attention-edit/attention-edit")

Slot = tuple[int, int]
"""A node's id and the place of one of its inputs or outputs."""


@dataclass
class End:
    """An input or output of the subgraph: its type, the slots inside that it leads to, and whether it is a widget."""

    name: str
    type: str
    slots: list[Slot] = field(default_factory=list)
    widget: bool = False


def _place(node: Mapping[str, Any], name: str) -> int | None:
    """Where a node has the input `name`; None where it has none."""
    return next((i for i, slot in enumerate(node.get("inputs") or []) if slot["name"] == name), None)


def _set(node: dict[str, Any], name: str, value: Any) -> None:
    """Give a widget a value. A seed's is followed by one of control_after_generate, which is no input."""
    place = 0
    for slot in node["inputs"]:
        if slot["name"] == name:
            node["widgets_values"][place] = value
            return
        place += ("widget" in slot) * (2 if slot["name"] in ("seed", "noise_seed") else 1)


class _Inside:
    """What of a workflow goes into the subgraph, and where it is cut."""

    def __init__(self, row: Blueprint, workflow: Mapping[str, Any]) -> None:
        self.row = row
        self.all = {node["id"]: copy.deepcopy(node) for node in workflow["nodes"]}
        self.into: dict[Slot, Link] = {(int(x.target), x.target_slot): x for x in links_of(workflow).values()}
        self.outputs = list(self._outputs())
        self.nodes: dict[int, dict[str, Any]] = {}
        self.sockets: dict[str, End] = {}
        self.links: list[Link] = []
        for end in self.outputs:
            self._enter(end.slots[0][0])
        self.nodes = dict(sorted(self.nodes.items()))
        order = (*SOCKETS, *(name for name in row.given.values() if name not in SOCKETS))
        sockets = sorted(self.sockets.values(), key=lambda end: order.index(end.name))
        self.inputs = [*sockets, *self._texts(), *self._settings()]

    def _outputs(self) -> Iterator[End]:
        for name, shown in self.row.shows.items():
            kind, _, wanted = shown.partition(".")
            for node in self.all.values():
                link = self.into.get((node["id"], _place(node, wanted) or 0))
                if node["type"] == kind and link is not None:
                    yield End(name, link.type, [(int(link.origin), link.origin_slot)])

    def _enter(self, number: int) -> None:
        """Take in a node and all that it stands on, up to where the user's own nodes begin."""
        if number in self.nodes:
            return
        node = self.nodes[number] = self.all[number]
        for place, slot in enumerate(node.get("inputs") or []):
            link = self.into.get((number, place))
            if link is None:
                continue
            origin = self.all[int(link.origin)]
            outside = OUTSIDE.get(origin["type"], {})
            name = self.row.given.get(f"{node['type']}.{slot['name']}") or outside.get(link.origin_slot)
            if name is not None:
                self.sockets.setdefault(name, End(name, link.type)).slots.append((number, place))
                continue
            self.links.append(link)
            self._enter(origin["id"])

    def _texts(self) -> Iterator[End]:
        found = [
            (node, place)
            for node in self.nodes.values()
            if (place := _place(node, TEXTS.get(node["type"], ""))) is not None and node["widgets_values"][0]
        ]
        for (name, example), (node, place) in zip(self.row.texts.items(), found, strict=True):
            _set(node, TEXTS[node["type"]], example)
            yield End(name, "STRING", [(node["id"], place)], widget=True)

    def _settings(self) -> Iterator[End]:
        for setting in self.row.settings:
            kind, _, name = setting.rpartition(".")
            end = End(name, "", widget=True)
            for node in self.nodes.values():
                for place, slot in enumerate(node["inputs"]):
                    if ALIKE.get(slot["name"], slot["name"]) == name and kind in ("", node["type"]):
                        _set(node, slot["name"], VALUES[name])
                        end.slots.append((node["id"], place))
                        end.type = slot["type"]
            yield end


def _wire(inside: _Inside) -> tuple[list[dict[str, Any]], dict[Slot, list[int]]]:
    """Number all links of the subgraph anew and write them into its nodes; also those of each slot of its two ends."""
    ends: dict[Slot, list[int]] = {}
    wires = sorted((int(x.origin), x.origin_slot, int(x.target), x.target_slot, x.type) for x in inside.links)
    for place, end in enumerate(inside.inputs):
        wires += [(INPUT, place, *slot, end.type) for slot in end.slots]
    for place, end in enumerate(inside.outputs):
        wires += [(*end.slots[0], OUTPUT, place, end.type)]
    for node in inside.nodes.values():
        for slot in node["outputs"]:
            slot["links"] = []
        for slot in node["inputs"]:
            slot["link"] = None
    links = []
    for number, (origin, out, target, into, kind) in enumerate(wires, 1):
        if origin == INPUT:
            ends.setdefault((INPUT, out), []).append(number)
        else:
            inside.nodes[origin]["outputs"][out]["links"].append(number)
        if target == OUTPUT:
            ends.setdefault((OUTPUT, into), []).append(number)
        else:
            inside.nodes[target]["inputs"][into]["link"] = number
        names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        links.append(dict(zip(names, (number, origin, out, target, into, kind), strict=True)))
    return links, ends


def _definition(row: Blueprint, inside: _Inside, workflow: Mapping[str, Any]) -> dict[str, Any]:
    """The subgraph, with its ends left and right of the nodes."""
    links, ends = _wire(inside)
    nodes = list(inside.nodes.values())
    top = min(node["pos"][1] for node in nodes)
    left = min(node["pos"][0] for node in nodes) - GAP - WIDTH
    right = max(node["pos"][0] + node["size"][0] for node in nodes) + GAP
    subgraph = uuid.uuid5(IDS, row.name)

    def slots(side: int, x: float, found: list[End]) -> list[dict[str, Any]]:
        return [
            {
                **{"id": str(uuid.uuid5(subgraph, f"{side} {end.name}")), "name": end.name, "type": end.type},
                **{"linkIds": ends[side, place], "pos": [x, top + ROW * (place + 1)]},
            }
            for place, end in enumerate(found)
        ]

    def bounding(x: float, found: list[End]) -> list[float]:
        return [x, top, WIDTH, ROW * (len(found) + 2)]

    def holds(group: Mapping[str, Any]) -> bool:
        x, y, width, height = group["bounding"]
        return any(x <= node["pos"][0] < x + width and y <= node["pos"][1] < y + height for node in nodes)

    groups = [group for group in workflow.get("groups", []) if holds(group)]
    last = max(group["id"] for group in groups) if groups else 0
    state = {"lastGroupId": last, "lastNodeId": max(inside.nodes), "lastLinkId": len(links), "lastRerouteId": 0}
    return {
        **{"id": str(subgraph), "version": 1, "state": state, "revision": 0, "config": {}, "name": row.title},
        **{"category": CATEGORY, "description": row.about},
        "inputNode": {"id": INPUT, "bounding": bounding(left, inside.inputs)},
        "outputNode": {"id": OUTPUT, "bounding": bounding(right, inside.outputs)},
        "inputs": slots(INPUT, left + WIDTH - ROW, inside.inputs),
        "outputs": slots(OUTPUT, right + ROW, inside.outputs),
        **{"widgets": [], "nodes": nodes, "groups": groups, "links": links, "extra": {}},
    }


def blueprint(row: Blueprint) -> dict[str, Any]:
    """A blueprint file: a workflow of one node, whose type is the subgraph that the file defines.

    Raises:
        ValueError: the workflow does not hold as many texts as the row names.
    """
    workflow = read_workflow(WORKFLOWS / f"{row.workflow}.json")
    inside = _Inside(row, workflow)
    subgraph = _definition(row, inside, workflow)

    def taken(end: End) -> dict[str, Any]:
        return {"name": end.name, "type": end.type, **({"widget": {"name": end.name}} if end.widget else {})}

    number = max(inside.all) + 1
    promoted = [(node, inside.nodes[node]["inputs"][place]["name"]) for node, place in
                (end.slots[0] for end in inside.inputs if end.widget)]  # fmt: skip
    node = {
        **{"id": number, "type": subgraph["id"], "title": row.title, "pos": [0, 0], "size": [340, 420]},
        **{"flags": {}, "order": 0, "mode": 0},
        "inputs": [{**taken(end), "link": None} for end in inside.inputs],
        "outputs": [{"name": end.name, "type": end.type, "links": []} for end in inside.outputs],
        # The front end reads the values inside; it keeps one of its own for each node as soon as it is placed.
        "properties": {"proxyWidgets": [[str(node), name] for node, name in promoted]},
        "widgets_values": [],
    }
    return {
        **{"id": str(uuid.uuid5(IDS, row.title)), "revision": 0, "last_node_id": number, "last_link_id": 0},
        **{"nodes": [node], "links": [], "groups": [], "definitions": {"subgraphs": [subgraph]}, "config": {}},
        "extra": {"BlueprintDescription": row.about, "BlueprintSearchAliases": list(row.aliases)},
        "version": 0.4,
    }


def files() -> dict[str, str]:
    """The text of every file of subgraphs/, by its name."""
    return {f"{row.title}.json": json.dumps(blueprint(row), indent=1, ensure_ascii=False) + "\n" for row in ROWS}


def write() -> list[Path]:
    """Write subgraphs/ anew and take out of it what no row makes; returns the files."""
    FOLDER.mkdir(exist_ok=True)
    made = files()
    for path in FOLDER.glob("*.json"):
        if path.name not in made:
            path.unlink()
    for name, text in made.items():
        (FOLDER / name).write_text(text, "utf-8")
    return [FOLDER / name for name in made]
