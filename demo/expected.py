"""What an edit of a demo scene should come to: the scene of a workflow, and the same scene after its edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import world
from workflow_file import WorkflowError, find_node

PROMPTS = {"Edit Prompt": 0, "Second Edit Prompt": 1}
"""Which object of the scene a prompt is for, by its node's title."""

DRAWN = ("add an object", "edit a part or region")
"""Tasks whose result has no rendered truth: where in the region an object comes to lie is the model's choice."""

Prompt = Mapping[str, Mapping[str, Any]]


def _named(words: Sequence[str], names: Sequence[str]) -> int | None:
    """The one of `names` that a prompt says."""
    found = [names.index(word) for word in words if word in names]
    return found[0] if found else None


def scene_of(prompt: Prompt) -> world.Scenes | None:
    """The scene that an API prompt starts from, or None when it starts from another picture."""
    try:
        inputs = prompt[find_node(prompt, "AttnEditDemoScene")]["inputs"]
    except WorkflowError:
        return None
    return world.demo_scene(inputs["scene"], inputs["objects"])


def task_of(prompt: Prompt) -> str | None:
    """The task of the Edit Masks node, or None when there is none."""
    try:
        return prompt[find_node(prompt, "AttnEditMasks")]["inputs"]["task"]
    except WorkflowError:
        return None


def text_of(prompt: Prompt) -> str:
    """The edit's prompt; empty for a removal, which has none."""
    try:
        return prompt[find_node(prompt, "Edit Prompt")]["inputs"]["text"]
    except WorkflowError:
        return ""


def edited(scenes: world.Scenes, task: str, text: str, slot: int = 0) -> world.Scenes:
    """The scenes as a task and a prompt such as "a blue square" would have them; what it leaves out stays.

    Args:
        slot: which object is edited.
    """
    words = text.lower().replace(",", " ").split()
    if task.startswith("remove"):
        return scenes.without_object(slot)
    if task.startswith("change"):
        ground = _named(words, world.BACKGROUNDS)
        if ground is None:
            raise ValueError(f"The prompt {text!r} names no background; it has {', '.join(world.BACKGROUNDS)}.")
        return scenes.with_background(torch.full_like(scenes.background, ground))
    shape, colour = _named(words, world.SHAPES), _named(words, world.COLOURS)
    if shape is None and colour is None:
        raise ValueError(f"The prompt {text!r} names no shape and no colour of the demo world.")
    old = scenes.shape[:, slot]
    return scenes.with_object(
        slot,
        None if shape is None else torch.full_like(old, shape),
        None if colour is None else torch.full_like(old, colour),
    )


def truth_of(prompt: Prompt) -> world.Scenes | None:
    """The edited scene of an API prompt, or None when it edits nothing or another picture, or a task of DRAWN."""
    scenes, task = scene_of(prompt), task_of(prompt)
    if scenes is None or task is None or task in DRAWN:
        return None
    scenes = edited(scenes, task, text_of(prompt))
    for title, slot in list(PROMPTS.items())[1:]:
        if any(node["_meta"]["title"] == title for node in prompt.values()):
            scenes = edited(scenes, task, prompt[find_node(prompt, title)]["inputs"]["text"], slot)
    return scenes
