"""Tasks of another shape, and what is measured on them: truths succeed, sources fail, a sketch reaches every way."""

from __future__ import annotations

import pytest
import scipy.ndimage
import torch
from bundle import sketch, world
from bundle.adapter import load_demo_adapter
from bundle.load import load_demo_model
from measure import injection_methods, masafusion_evaluation, pack_methods
from measure.methods import Setup
from scenes import expected
from scenes.shape_tasks import SHAPE_TASKS, make_shape_task
from scenes.tasks import SLOT

every_task = pytest.mark.parametrize("name", SHAPE_TASKS)


@every_task
def test_truth_succeeds_and_source_fails(name: str) -> None:
    task = make_shape_task(name, 16)
    assert all(task.success(task.truth))
    assert not any(task.success(task.source))


@every_task
def test_only_the_shape_and_place_of_one_object_change(name: str) -> None:
    task = make_shape_task(name, 16)
    before, after = task.scenes, task.edited
    assert (before.shape[:, SLOT] != after.shape[:, SLOT]).all()
    assert torch.equal(before.colour, after.colour) and torch.equal(before.radius, after.radius)
    assert torch.equal(before.shape[:, 1], after.shape[:, 1]) and torch.equal(before.centre[:, 1], after.centre[:, 1])
    apart = (before.centre - after.centre)[:, SLOT].norm(dim=-1)
    assert (apart >= before.radius[:, SLOT]).all() if name == "move" else not apart.any()


def test_an_object_that_moves_stays_clear_of_the_other_and_of_the_border() -> None:
    scenes = make_shape_task("move", 16).edited
    two = scenes.shape[:, 1] != world.NOTHING
    gap = (scenes.centre[:, 0] - scenes.centre[:, 1]).norm(dim=-1)
    assert (gap > 1.15 * scenes.radius.sum(1))[two].all()
    margin = scenes.radius[:, SLOT, None]
    assert ((scenes.centre[:, SLOT] >= margin) & (scenes.centre[:, SLOT] <= 1 - margin)).all()


def test_an_image_with_the_old_object_left_fails() -> None:
    task = make_shape_task("move", 4)[:2]
    both = torch.where(task.object_mask > 0, task.source, task.truth)
    assert not any(task.success(both))


def test_a_sketch_says_what_a_workflow_shall_come_to() -> None:
    def node(kind: str, title: str, **inputs: object) -> dict:
        return {"class_type": kind, "inputs": inputs, "_meta": {"title": title}}

    moved = {"object": 1, "shape": "square", "colour": "green", "right": 0.1, "down": 0.0}
    prompt = {
        "1": node("AttnEditDemoScene", "Demo Scene", scene=4, objects=1),
        "2": node("AttnEditMasks", "Edit Masks", task="replace or recolour"),
        "3": node("CLIPTextEncode", "Edit Prompt", text="a green square"),
        "4": node("AttnEditDemoSketch", "Demo Sketch", scene=4, objects=1, **moved),
    }
    found = expected.truth_of(prompt)
    wanted = sketch.altered(world.demo_scene(4, 1), 0, "square", "green", 0.1)
    assert found is not None and torch.equal(world.render(found), world.render(wanted))


@pytest.fixture
def registered() -> None:
    pack_methods.register()
    injection_methods.register()


@pytest.mark.usefixtures("registered")
def test_regions_are_changed_by_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """What MaSaFusion is given in place of the true region: larger or smaller, on each side, by latent cells."""
    task, seen = make_shape_task("reshape", 2), []
    ways = [(way, by_sketch) for name, way, by_sketch in masafusion_evaluation.ways() if "region" in name]
    monkeypatch.setattr(masafusion_evaluation, "fuse", lambda _, changed: seen.append(changed.mask) or changed.source)
    for way, by_sketch in ways:
        assert by_sketch
        way(Setup(None, None, None), task)
    true = task.mask[0, 0].numpy()
    away, deep = (scipy.ndimage.distance_transform_cdt(mask, "chessboard") for mask in (1 - true, true))
    larger, smaller = (mask[0, 0].numpy() > 0 for mask in seen)
    assert ((away <= 2 * 8) == larger).all() and ((deep > 8) == smaller).all()


@pytest.mark.measure
@pytest.mark.usefixtures("registered")
@torch.inference_mode()
def test_each_way_is_measured_and_a_sketch_reaches_it() -> None:
    setup, task = Setup(*load_demo_model(), steps=4), make_shape_task("reshape", 1)
    rows = {row.method: row for row in masafusion_evaluation.measure_ways(setup, load_demo_adapter(), task)}
    assert len(rows) == 2 * (2 + len(masafusion_evaluation.OTHERS)) + 2
    for name, row in rows.items():
        plain = name.removesuffix(masafusion_evaluation.SKETCH)
        if plain != name:
            assert row.l2 != rows[plain].l2, f"the sketch does not reach {plain}"
            assert row.rows == rows[plain].rows
    # Inversion, and each of 3 steps with both halves: of the source, and twice of each image that is drawn.
    assert rows["MaSaFusion"].rows == 3 + 3 * 10
    text = masafusion_evaluation.tables([], list(rows.values()))
    assert all(f"| {name} " in text for name in rows)
