"""The nodes' words as the front end translates them: `python demo --locales` writes locales/en/ from the schemas.

ComfyUI collects locales/<language>/main.json and nodeDefs.json of all packs and hands them to its front end at /i18n.
English is generated; other languages have the same keys and are written by hand, and tests/nodes/test_locales.py
prints what they lack, to be pasted and translated. The front end shows names and tooltips of them; options stand there
as the format has them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

LOCALES = Path(__file__).resolve().parents[2] / "locales"
PREFIX = "AttnEdit"
FILES = {("AttnEditLoadInversion", "file")}
"""Inputs whose options are the user's own files."""


def _key(name: str) -> str:
    """A name as a key: the front end reads dots as steps into the tree."""
    return name.replace(".", "_")


def _input(node: str, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    texts: dict[str, Any] = {"name": options.get("display_name") or name, "tooltip": options["tooltip"]}
    choices = [] if (node, name) in FILES else options.get("options", [])
    return {**texts, "options": {_key(choice): choice for choice in choices}} if choices else texts


def node_texts(info: Mapping[str, Any]) -> dict[str, Any]:
    """What a user reads of one node.

    Args:
        info: its entry of the server's /object_info.
    """
    groups = [info["input"].get(group) or {} for group in ("required", "optional")]
    specs = {name: spec for group in groups for name, spec in group.items()}
    outputs = zip(info["output_name"], info["output_tooltips"], strict=True)
    return {
        "display_name": info["display_name"],
        "description": info["description"],
        "inputs": {_key(name): _input(info["name"], name, spec[1]) for name, spec in specs.items()},
        "outputs": {str(place): {"name": name, "tooltip": tip} for place, (name, tip) in enumerate(outputs)},
    }


def english(infos: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The files of locales/en/ by name: the pack's nodes, and the parts of their categories.

    Args:
        infos: entries of the server's /object_info, in any order; those of other packs are left out.
    """
    own = sorted((info for info in infos if info["name"].startswith(PREFIX)), key=lambda info: info["name"])
    parts = sorted({part for info in own for part in info["category"].split("/")})
    return {
        "main.json": {"nodeCategories": {part: part for part in parts}},
        "nodeDefs.json": {info["name"]: node_texts(info) for info in own},
    }


def as_text(content: Mapping[str, Any]) -> str:
    """A locale file's content as it is written."""
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"


def write(infos: Iterable[Mapping[str, Any]]) -> list[Path]:
    """Write locales/en/, and return its files."""
    folder = LOCALES / "en"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in english(infos).items():
        (folder / name).write_text(as_text(content), "utf-8", newline="\n")
    return [folder / name for name in sorted(english(infos))]
