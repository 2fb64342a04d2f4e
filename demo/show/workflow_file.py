"""Convert a workflow as the front end saves it (nodes, links, widgets_values) into an API prompt.

    prompt = to_prompt(read_workflow(path), server.object_info())
    override(prompt, "KSampler", seed=7, steps=4)

The result is what the front end's own graphToPrompt gives; tests/test_workflows.py compares the two. What
this module cannot convert (subgraphs, group nodes, random `{a|b}` prompts) it refuses by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MUTED, BYPASSED = 2, 4
VIRTUAL = {"Note", "MarkdownNote", "Reroute", "PrimitiveNode"}
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR"}
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"

Prompt = dict[str, dict[str, Any]]


class WorkflowError(ValueError):
    """A workflow file that cannot be converted; the text names the node and what to change."""


@dataclass(frozen=True)
class Link:
    """A connection: output `origin_slot` of `origin` to input `target_slot` of `target`."""

    id: int
    origin: str
    origin_slot: int
    target: str
    target_slot: int
    type: str


def read_workflow(path: Path) -> dict[str, Any]:
    """Read a workflow file; an API prompt or another JSON is refused."""
    workflow = json.loads(path.read_text("utf-8"))
    if not isinstance(workflow, dict) or "nodes" not in workflow or "links" not in workflow:
        raise WorkflowError(
            f"{path.name} has no nodes and links: expected a workflow saved by the front end (Save or "
            "Export), not one in API format."
        )
    return workflow


def without_download(folder: Path) -> list[Path]:
    """The workflows of a folder that run as they are: on the demo model, not on a checkpoint's loaders."""
    return sorted(path for path in folder.glob("*.json") if '"AttnEditDemoModel"' in path.read_text("utf-8"))


def links_of(workflow: Mapping[str, Any]) -> dict[int, Link]:
    """All links by id, from the list form (version 0.4) or the object form (version 1)."""
    found: dict[int, Link] = {}
    for entry in workflow["links"]:
        if isinstance(entry, Mapping):
            keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
            entry = [entry[key] for key in keys]
        number, origin, origin_slot, target, target_slot, kind = entry
        found[number] = Link(number, str(origin), origin_slot, str(target), target_slot, str(kind))
    return found


def check_links(workflow: Mapping[str, Any]) -> list[str]:
    """What is wrong with the links, as texts: ends that do not exist or do not name the link back."""
    nodes = {str(node["id"]): node for node in workflow["nodes"]}
    links = links_of(workflow)
    wrong: list[str] = []
    for link in links.values():
        outputs = nodes.get(link.origin, {}).get("outputs") or []
        inputs = nodes.get(link.target, {}).get("inputs") or []
        if link.origin_slot >= len(outputs) or link.id not in (outputs[link.origin_slot].get("links") or []):
            wrong.append(f"link {link.id}: output {link.origin_slot} of node {link.origin} does not name it")
        if link.target_slot >= len(inputs) or inputs[link.target_slot].get("link") != link.id:
            wrong.append(f"link {link.id}: input {link.target_slot} of node {link.target} does not name it")
    for node in nodes.values():
        used = [slot.get("link") for slot in node.get("inputs") or []]
        used += [number for slot in node.get("outputs") or [] for number in slot.get("links") or []]
        wrong += [f"node {node['id']} names link {number}, which does not exist" for number in used
                  if number is not None and number not in links]  # fmt: skip
    return wrong


def _compatible(one: str, other: str) -> bool:
    """The front end's rule for connecting two types; a type may list several, with commas."""
    if "*" in (one, other) or "" in (one, other):
        return True
    return bool(set(one.lower().split(",")) & set(other.lower().split(",")))


def _widget_specs(
    inputs: Mapping[str, Any], sockets: set[str], values: Iterator[Any] | None, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """(name, value) of every widget of a node definition, in the order in which the front end makes them.

    `values` are the saved values in that order; None, or too few, gives the defaults. `sockets` are the
    widget inputs that the saved node lists, by which custom widget types are told from plain sockets.
    """
    for group in ("required", "optional"):
        for name, spec in (inputs.get(group) or {}).items():
            kind, options = spec[0], (spec[1] if len(spec) > 1 else {}) or {}
            full = prefix + name
            is_combo = isinstance(kind, list) or kind == "COMBO"
            named = full in sockets or options.get("widgetType") is not None
            is_widget = is_combo or kind in WIDGET_TYPES or kind == DYNAMIC_COMBO or named
            if not is_widget or options.get("forceInput"):
                continue
            choices = kind if isinstance(kind, list) else options.get("options", [])
            value = _next_value(values, _default(kind, choices, options))
            yield full, value
            if kind == DYNAMIC_COMBO:
                chosen = next((choice for choice in choices if choice["key"] == value), None)
                if chosen:
                    yield from _widget_specs(chosen["inputs"], sockets, values, full + ".")
            control = options.get("control_after_generate")
            seed = kind == "INT" and name in ("seed", "noise_seed") and control is None
            if control or seed:
                _next_value(values, None)


def _next_value(values: Iterator[Any] | None, default: Any) -> Any:
    return default if values is None else next(values, default)


def _default(kind: Any, choices: list[Any], options: Mapping[str, Any]) -> Any:
    if "default" in options:
        return options["default"]
    if kind == DYNAMIC_COMBO:
        return choices[0]["key"] if choices else None
    if choices:
        return choices[0]
    return {"INT": 0, "FLOAT": 0, "BOOLEAN": False, "STRING": "", "COLOR": "#ffffff"}.get(str(kind))


def _plain_text(text: str, where: str) -> str:
    """A text as the front end sends it from a field with dynamic prompts: no comments, `\\{` is a brace."""
    text = re.sub(r"/\*[\s\S]*?\*/|//.*", "", text)
    if re.search(r"(?<!\\)[{}]", text):
        raise WorkflowError(f"{where} has a random choice {{a|b}}; write one of them, or escape the brace as \\{{.")
    return re.sub(r"\\([{}])", r"\1", text)


class _Converter:
    def __init__(self, workflow: Mapping[str, Any], object_info: Mapping[str, Any]) -> None:
        self.nodes = {str(node["id"]): node for node in workflow["nodes"]}
        self.links = links_of(workflow)
        self.info = object_info
        subgraphs = (workflow.get("definitions") or {}).get("subgraphs") or []
        names = {graph["id"]: graph["name"] for graph in subgraphs}
        for node in self.nodes.values():
            kind = node["type"]
            where = f"Node {node['id']} ({node.get('title') or kind})"
            if kind in names or kind.startswith(("workflow>", "workflow/")):
                raise WorkflowError(f"{where} is the subgraph {names.get(kind, kind)!r}; unpack it in the front end.")
            if kind not in VIRTUAL and kind not in object_info and node.get("mode", 0) not in (MUTED, BYPASSED):
                raise WorkflowError(f"{where}: the server has no node {kind!r}; install the pack that brings it.")

    def convert(self) -> Prompt:
        """The prompt of all nodes that run, with inputs from removed nodes left out."""
        prompt: Prompt = {}
        for node_id, node in self.nodes.items():
            if node["type"] in VIRTUAL or node.get("mode", 0) in (MUTED, BYPASSED):
                continue
            info = self.info[node["type"]]
            title = node.get("title") or info.get("display_name") or node["type"]
            inputs = self._widgets(node, info)
            for slot in node.get("inputs") or []:
                found = self._source(slot.get("link"))
                if found is not None:
                    inputs[slot["name"]] = found
            prompt[node_id] = {"inputs": inputs, "class_type": node["type"], "_meta": {"title": title}}
        for entry in prompt.values():
            for name, value in list(entry["inputs"].items()):
                if isinstance(value, list) and value[0] not in prompt:
                    del entry["inputs"][name]
        return prompt

    def _widgets(self, node: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
        saved = node.get("widgets_values")
        sockets = {slot["widget"]["name"] for slot in node.get("inputs") or [] if slot.get("widget")}
        by_name = saved if isinstance(saved, Mapping) else None
        values = iter(saved) if isinstance(saved, list) else None
        inputs: dict[str, Any] = {}
        for name, value in _widget_specs(info["input"], sockets, values):
            chosen = by_name.get(name, value) if by_name is not None else value
            spec = (info["input"].get("required") or {}).get(name) or (info["input"].get("optional") or {}).get(name)
            if isinstance(chosen, str) and spec and len(spec) > 1 and spec[1].get("dynamicPrompts"):
                chosen = _plain_text(chosen, f"Node {node['id']} ({node['type']}), {name},")
            inputs[name] = {"__value__": chosen} if isinstance(chosen, list) else chosen
        return inputs

    def _source(self, number: int | None) -> Any:
        """What a link brings: [node id, slot], a primitive's value, or None when it ends nowhere."""
        if number is None or number not in self.links:
            return None
        link = self.links[number]
        origin = self.nodes.get(link.origin)
        if origin is None or origin.get("mode", 0) == MUTED:
            return None
        if origin["type"] == "PrimitiveNode":
            value = (origin.get("widgets_values") or [None])[0]
            return {"__value__": value} if isinstance(value, list) else value
        slots = origin.get("inputs") or []
        if origin["type"] == "Reroute":
            return self._source(slots[0].get("link")) if slots else None
        if origin.get("mode", 0) == BYPASSED:
            index = _bypass_slot(origin, link.origin_slot, self._wanted_type(link))
            return self._source(slots[index].get("link")) if index is not None else None
        return [link.origin, link.origin_slot]

    def _wanted_type(self, link: Link) -> str:
        target = self.nodes[link.target]
        return str(target["inputs"][link.target_slot]["type"])


def _bypass_slot(node: Mapping[str, Any], slot: int, wanted: str) -> int | None:
    """Which input a bypassed node hands on at output `slot`: the front end's rule, step for step."""
    inputs = [str(entry["type"]) for entry in node.get("inputs") or []]
    output = str(node["outputs"][slot]["type"])
    if wanted in ("*", ""):
        return (slot if len(inputs) > slot else 0) if inputs else None
    fitting = [i for i, kind in enumerate(inputs) if _compatible(kind, output) and _compatible(kind, wanted)]
    if slot in fitting:
        return slot
    exact = [i for i, kind in enumerate(inputs) if kind == wanted]
    return next(iter(exact + fitting), None)


def to_prompt(workflow: Mapping[str, Any], object_info: Mapping[str, Any]) -> Prompt:
    """Convert a workflow into an API prompt, with the node definitions of the server (/object_info)."""
    return _Converter(workflow, object_info).convert()


def find_node(prompt: Mapping[str, Mapping[str, Any]], node: str | int) -> str:
    """The id of the node with this id, else title, else type; an unknown or ambiguous one is an error."""
    if str(node) in prompt:
        return str(node)
    for name in (lambda entry: entry["_meta"]["title"], lambda entry: entry["class_type"]):
        found = [number for number, entry in prompt.items() if name(entry) == node]
        if len(found) == 1:
            return found[0]
        if found:
            raise WorkflowError(f"{len(found)} nodes are named {node!r}: give one of the ids {', '.join(found)}.")
    names = sorted(f"{number}: {entry['_meta']['title']}" for number, entry in prompt.items())
    raise WorkflowError(f"No node has the id, title or type {node!r}; there are {'; '.join(names)}.")


def override(prompt: Prompt, node: str | int, /, **values: Any) -> Prompt:
    """Set inputs of one node in `prompt`, in place; the node must have them, as widgets and not as links."""
    number = find_node(prompt, node)
    inputs = prompt[number]["inputs"]
    for name, value in values.items():
        if name not in inputs:
            raise WorkflowError(f"Node {number} has no input {name!r}; it has {', '.join(sorted(inputs))}.")
        if isinstance(inputs[name], list):
            raise WorkflowError(f"Input {name!r} of node {number} is connected to node {inputs[name][0]}.")
        inputs[name] = value
    return prompt
