"""What an edit of a demo scene should come to: the scene of a workflow, and the same scene after its edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from bundle import sketch, world
from show.workflow_file import WorkflowError, find_node

FIRST, SECOND = "Edit Prompt", "Second Edit Prompt"
"""Titles of the nodes whose prompts are for the scene's first and second object."""

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


def text_of(prompt: Prompt, title: str = FIRST) -> str:
    """A prompt of the edit; empty where there is none, as for a removal."""
    try:
        return prompt[find_node(prompt, title)]["inputs"]["text"]
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


def sketched_of(prompt: Prompt) -> world.Scenes | None:
    """The scene whose outlines the Demo Sketch node of an API prompt draws, or None when there is none."""
    try:
        inputs = dict(prompt[find_node(prompt, "AttnEditDemoSketch")]["inputs"])
    except WorkflowError:
        return None
    scenes = world.demo_scene(inputs.pop("scene"), inputs.pop("objects"))
    return sketch.altered(scenes, inputs.pop("object") - 1, **inputs)


def truth_of(prompt: Prompt) -> world.Scenes | None:
    """The edited scene of an API prompt, or None when it edits nothing or another picture, or a task of DRAWN.

    Where there is a sketch, it tells what the words do not: where the edited object shall be.
    """
    scenes, task, sketched = scene_of(prompt), task_of(prompt), sketched_of(prompt)
    if scenes is None or task is None or task in DRAWN:
        return None
    if sketched is not None:
        return sketched
    scenes, second = edited(scenes, task, text_of(prompt)), text_of(prompt, SECOND)
    return edited(scenes, task, second, 1) if second else scenes
