"""On the host of `python tests --host`: it loads the pack's nodes with their schemas, and refusals keep their text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from attention_edit.nodes import NODES
from machine.prompt_result import PromptError
from made import prompt_of
from show.workflow_file import Prompt, find_node

if TYPE_CHECKING:
    from machine.comfy_server import ComfyServer


def test_it_starts_without_errors(server: ComfyServer) -> None:
    log = server.log_text().split("To see the GUI go to")[0]
    assert "attention-edit" in log
    ours = [line for line in log.splitlines() if "attention-edit" in line or "attention_edit" in line]
    assert [line for line in ours if re.search(r"\b(error|exception|traceback|failed)\b", line, re.I)] == []


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_a_node_is_listed_with_its_schema(node: Any, server: ComfyServer) -> None:
    """Inputs and outputs in their order, with a tooltip each; what young hosts are told only may be missing."""
    schema = node.GET_SCHEMA()
    listed = server.get(f"/object_info/{schema.node_id}")[schema.node_id]
    inputs = {**listed["input"].get("required", {}), **listed["input"].get("optional", {})}
    assert sorted(inputs) == sorted(made.id for made in schema.inputs)
    order = [name for names in listed["input_order"].values() for name in names]
    assert set(order) - {name for name in listed["input_order"].get("hidden", [])} == set(inputs)
    assert all(spec[1]["tooltip"] for spec in inputs.values())
    assert listed["output"] == [made.io_type for made in schema.outputs]
    assert all(listed["output_tooltips"]) and listed["description"] and listed["category"] == schema.category


def empty_mask(prompt: Prompt) -> None:
    inputs = {"value": 0.0, "width": 128, "height": 128}
    prompt["other"] = {"class_type": "SolidMask", "inputs": inputs, "_meta": {"title": "Solid"}}
    prompt[find_node(prompt, "AttnEditMasks")]["inputs"]["mask"] = ["other", 0]


def other_latent(prompt: Prompt) -> None:
    inputs = {"width": 64, "height": 64, "batch_size": 1}
    prompt["other"] = {"class_type": "EmptyLatentImage", "inputs": inputs, "_meta": {"title": "Empty"}}
    prompt[find_node(prompt, "KSampler")]["inputs"]["latent_image"] = ["other", 0]


def other_words(prompt: Prompt) -> None:
    prompt[find_node(prompt, "AttnEditMapMask")]["inputs"]["words"] = "zebra"


@pytest.mark.parametrize(
    ("workflow", "wrong", "text", "node"),
    [
        ("cpam-replace", empty_mask, "Draw the object in Load Image's mask editor.*selects nothing", "AttnEditMasks"),
        ("cpam-replace", other_latent, "Connect Edit Setup's latent", "KSampler"),
        ("mask-from-words", other_words, "zebra", "AttnEditMapMask"),
    ],
)
def test_refusals_keep_their_text(workflow: str, wrong: Any, text: str, node: str, server: ComfyServer) -> None:
    prompt = prompt_of(server, workflow)
    wrong(prompt)
    with pytest.raises(PromptError, match=text) as caught:
        server.run(prompt)
    assert caught.value.node_type == node
