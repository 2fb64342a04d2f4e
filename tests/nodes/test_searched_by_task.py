"""People search for what they want to do: every such word finds nodes that do it, and display names say it too."""

from __future__ import annotations

import pytest
from attention_edit.nodes import NODES

SCHEMAS = {schema.node_id: schema for schema in (node.define_schema() for node in NODES)}
TASKS = {
    "edit photo": "CPAM FPE MasaCtrl P2P PnP Invert Setup",
    "inpaint": "CPAM MaSaFusion Masks",
    "replace": "CPAM MaSaFusion FPE",
    "erase": "CPAM Masks",
    "remove": "CPAM",
    "object removal": "CPAM Masks",
    "add object": "CPAM",
    "background": "CPAM Background BackgroundMask",
    "change background": "CPAM",
    "keep background": "Background Composite LocalBlend",
    "pose": "MasaCtrl MaSaFusion",
    "change shape": "MaSaFusion",
    "sketch": "MaSaFusion",
    "style": "PnP StyleAligned",
    "season": "PnP",
    "weather": "PnP",
    "recolour": "CPAM P2P EmbCtrl MAG",
    "recolor": "CPAM P2P EmbCtrl MAG",
    "material": "EmbCtrl",
    "structure": "FPE",
    "variation": "Setup",
    "mask from text": "MapMask DiffMask BackgroundMask",
    "text to mask": "MapMask DiffMask",
    "segment": "MapMask SelfMaps BackgroundMask",
    "paste back": "Composite",
    "regional prompt": "Region RegionPrompts",
    "compare": "Sweep Grid",
}
"""Words that people search for, and the nodes that do it (without AttnEdit)."""


def found_by(words: str) -> set[str]:
    """The nodes whose display name or search aliases hold these words, as the front end looks for them."""
    return {
        name.removeprefix("AttnEdit")
        for name, schema in SCHEMAS.items()
        if any(words in text.lower() for text in [schema.display_name, *schema.search_aliases])
    }


@pytest.mark.parametrize("task", TASKS)
def test_a_task_finds_the_nodes_that_do_it(task: str) -> None:
    assert not set(TASKS[task].split()) - found_by(task)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("CPAM", "CPAM"),
        ("DPL", "Dynamic Prompt Learning"),
        ("DiffMask", "Difference Mask"),
        ("EmbCtrl", "EmbCtrl"),
        ("FPE", "FPE"),
        ("LocalBlend", "Local Blend"),
        ("MAG", "MAG-Edit"),
        ("MaSaFusion", "MaSaFusion"),
        ("MasaCtrl", "MasaCtrl"),
        ("P2P", "Prompt-to-Prompt"),
        ("PnP", "Plug-and-Play"),
        ("Proximal", "Proximal Guidance"),
        ("StyleAligned", "StyleAligned"),
    ],
)
def test_a_name_that_errors_and_pages_use_is_in_the_display_name(name: str, method: str) -> None:
    """Messages say "connect CPAM"; who searches for that must find the node, which is named by its task."""
    title = SCHEMAS[f"AttnEdit{name}"].display_name
    assert method in title and title != method
