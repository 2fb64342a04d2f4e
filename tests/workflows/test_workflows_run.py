"""Every file of workflows/ runs on a real ComfyUI server as it is shipped, and its pictures show what it promises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from bundle import world
from house import PACK, texts_of
from made import FOLDER, Made, add_outputs, assert_kept, assert_reads, assert_shows, execute, prompt_of
from scenes import expected, metrics, reader
from show.workflow_file import Prompt, find_node, override, without_download

if TYPE_CHECKING:
    from machine.comfy_server import ComfyServer

pytestmark = pytest.mark.server

FILES = without_download(FOLDER)
PHOTOS = [path for path in FILES if "AttnEditFitPhoto" in path.read_text("utf-8")]
"""Edits of a part of a larger picture, with tests of their own."""
TURNS = [path for path in FILES if "AttnEditNextTurn" in path.read_text("utf-8")]
"""Several edits in one workflow, with tests of their own."""
EDITS = [path for path in FILES if "AttnEditMasks" in path.read_text("utf-8") and path not in [*PHOTOS, *TURNS]]
APART = ("attention-viewer", "fast-inversion", "inversion-check", "mag-edit", "null-text-inversion")
APART += ("sweep", "two-regions")
"""Workflows whose pictures have tests of their own."""
INJECTIONS = [path.stem for path in FILES if path not in [*EDITS, *PHOTOS, *TURNS] and path.stem not in APART]
"""Edits that take no mask: a new method's workflow is one without being named."""
WEAK = "With the demo model the edit is weak"
"""What a workflow's note says if its picture does not show what its prompt says."""
METHOD_NODES = {
    node
    for path in (PACK / "attention/methods").iterdir()
    if (PACK / f"nodes/{path.stem}.py").is_file()
    for node in texts_of(PACK / f"nodes/{path.stem}.py", "node_id")
}
"""Nodes of the files that are called as a method's."""
PROMISING = [name for name in INJECTIONS if WEAK not in (FOLDER / f"{name}.json").read_text("utf-8")]


@pytest.fixture(scope="module", params=EDITS, ids=lambda path: path.stem)
def edit(request: pytest.FixtureRequest, server: ComfyServer) -> Made:
    """A shipped edit, run once for all tests."""
    prompt = prompt_of(server, request.param.stem)
    add_outputs(prompt)
    return execute(server, request.param.stem, prompt)


@pytest.fixture(scope="module")
def inversion_check(server: ComfyServer) -> Made:
    return execute(server, "inversion-check", prompt_of(server, "inversion-check"))


def test_all_that_have_tests_of_their_own_are_there() -> None:
    assert set(APART) <= {path.stem for path in FILES} - {path.stem for path in EDITS}


def test_shows_the_scene_and_an_edit_of_its_size(edit: Made) -> None:
    scenes = expected.scene_of(edit.prompt)
    assert scenes is not None
    assert torch.allclose(edit.images["Before"], world.render(scenes), atol=1 / 255)
    assert edit.images["After"].shape == edit.images["Before"].shape
    assert metrics.psnr(edit.images["After"], edit.images["Before"]) < 35, "nothing was edited"


def test_composites_the_very_pixels(edit: Made) -> None:
    """Where Composite in Pixels is in the workflow, every byte beyond its feather is the source's."""
    feathers = [e["inputs"]["feather"] for e in edit.prompt.values() if e["class_type"] == "AttnEditComposite"]
    assert feathers or edit.name == "cpam-background"
    for feather in feathers:
        kept = (metrics.dilate(edit.images["May Change"][:, :1], feather) < 0.5).expand_as(edit.images["After"])
        assert kept.sum() > 1000
        assert torch.equal(edit.images["After"][kept], edit.images["Before"][kept])


def test_keeps_what_is_not_masked(edit: Made, server: ComfyServer) -> None:
    if edit.name == "cpam-background":
        # No pixel of the scene's object lies two cells inside it, so here the ground is what stays.
        prompt = prompt_of(server, edit.name)
        add_outputs(prompt)
        edit = execute(server, edit.name, override(prompt, "AttnEditMasks", invert=True))
    assert_kept(edit)


def test_shows_what_the_prompt_says(edit: Made) -> None:
    """Read from the pixels: the new object, no object, or the new ground, and all that had to stay."""
    truth = expected.truth_of(edit.prompt)
    if truth is not None:
        assert_shows(edit.images["After"], truth)
        return
    image, region = edit.images["After"], edit.images["May Change"][:, :1]
    text, scenes = expected.text_of(edit.prompt), expected.scene_of(edit.prompt)
    assert scenes is not None
    if edit.name == "add-object":
        # Wherever in the region it lies, beside what was there.
        assert_reads(image, f"{text} and {world.full_captions(scenes)[0]}")
        return
    assert edit.name == "part-edit"
    rest = world.masks(scenes)[:, :1] * (1 - metrics.dilate(region, 2))
    new = next(world.COLOURS.index(word) for word in text.split() if word in world.COLOURS)
    assert float(reader.colour_share(image[0], region[0, 0] > 0.5, new)) > 0.5
    assert float(reader.colour_share(image[0], rest[0, 0] > 0.5, int(scenes.colour[0, 0]))) > 0.9


def test_a_proposed_mask_is_on_the_object_and_refined(server: ComfyServer) -> None:
    """Difference Mask finds most of the scene's object; the refined masks are shown, one for each step."""
    made = execute(server, "proposal-mask", prompt_of(server, "proposal-mask"))
    scenes = expected.scene_of(made.prompt)
    assert scenes is not None
    proposed = made.images["May Change"][:, :1] > 0.5
    true = world.masks(scenes)[:, :1] > 0.5
    assert float((proposed & true).sum() / true.sum()) > 0.5 and float(proposed.float().mean()) < 0.6
    assert made.images["Refined Masks"].shape[-1] > world.SIZE
    assert made.images["Heat"].shape == made.images["After"].shape


@pytest.fixture(scope="module", params=INJECTIONS)
def injection(request: pytest.FixtureRequest, server: ComfyServer) -> Made:
    """A shipped edit that needs no mask, run once for all tests."""
    return execute(server, request.param, prompt_of(server, request.param))


def test_edits_without_a_mask(injection: Made) -> None:
    """A picture of the source's size, neither the source itself nor a flat one."""
    before, after = injection.images["Before"], injection.images["After"]
    assert after.shape == before.shape == (1, 3, world.SIZE, world.SIZE)
    assert metrics.psnr(after, before) < 35, "nothing was edited"
    assert float(after.std()) > 0.02, "a flat picture"


@pytest.mark.parametrize("injection", PROMISING, indirect=True)
def test_edits_without_a_mask_show_the_prompt(injection: Made) -> None:
    """Read from the pixels: what Edit Prompt says."""
    assert_reads(injection.images["After"], expected.text_of(injection.prompt))


def test_edits_without_a_mask_act(injection: Made, server: ComfyServer) -> None:
    """Without its methods' nodes, or with a stock sampler in such a one's place, the workflow draws another picture."""
    prompt = prompt_of(server, injection.name)
    info, shipped = server.object_info(), prompt_of(server, injection.name)
    for name, entry in list(prompt.items()):
        if entry["class_type"] not in METHOD_NODES:
            continue
        if info[entry["class_type"]]["output"] == ["SAMPLER"]:
            prompt[name] = {**entry, "class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}}
        elif can_be_bypassed(prompt, name, info):
            bypass(prompt, name, info)
    assert prompt != shipped
    without = execute(server, injection.name, prompt).images["After"]
    assert not torch.equal(injection.images["After"], without)


def passed_on(entry: dict[str, Any], kinds: dict[str, Any], output: int) -> list[Any]:
    """A node's inputs of the type of one of its outputs, in order."""
    given = {**kinds["input"].get("required", {}), **kinds["input"].get("optional", {})}
    return [
        entry["inputs"][i] for i, spec in given.items() if i in entry["inputs"] and spec[0] == kinds["output"][output]
    ]


def can_be_bypassed(prompt: Prompt, name: str, info: dict[str, Any]) -> bool:
    """Whether every output that is read has an input of its type; a node that makes something new has none.

    An inversion is not bypassed either: it is what methods edit, and Prompt with Words asks for the learned one.
    """
    entry = prompt[name]
    if "AEDIT_INVERSION" in info[entry["class_type"]]["output"]:
        return False
    links = [value for other in prompt.values() for value in other["inputs"].values() if isinstance(value, list)]
    return all(passed_on(entry, info[entry["class_type"]], link[1]) for link in links if link[0] == name)


def bypass(prompt: Prompt, name: str, info: dict[str, Any]) -> None:
    """Take a node out as the front end's bypass does: who reads an output reads the last input of its type."""
    kinds, removed = info[prompt[name]["class_type"]], prompt.pop(name)
    for entry in prompt.values():
        for key, value in entry["inputs"].items():
            if isinstance(value, list) and value[0] == name:
                entry["inputs"][key] = passed_on(removed, kinds, value[1])[-1]


def test_the_sweep_draws_one_picture_per_value(server: ComfyServer) -> None:
    """Side by side with labels above; what the first value draws is not what the last one draws."""
    made = execute(server, "sweep", prompt_of(server, "sweep"))
    after = made.images["After"]
    count = len(made.prompt[find_node(made.prompt, "AttnEditSweep")]["inputs"]["values"].split(","))
    assert after.shape[-1] == count * world.SIZE and after.shape[-2] > world.SIZE
    panels = after[..., -world.SIZE :, :].split(world.SIZE, -1)
    assert not torch.equal(panels[0], panels[-1])


def test_the_inversion_reconstructs(inversion_check: Made) -> None:
    scenes = expected.scene_of(inversion_check.prompt)
    assert scenes is not None
    assert_shows(inversion_check.images["Reconstruction"], scenes)
    report = inversion_check.result.outputs[find_node(inversion_check.prompt, "Report")]["text"][0]
    assert "PSNR" in report


def test_attention_finds_the_objects(server: ComfyServer) -> None:
    """The viewer's grid has a tile for every word, and the region that is chosen is the red square."""
    made = execute(server, "attention-viewer", prompt_of(server, "attention-viewer"))
    scenes = expected.scene_of(made.prompt)
    assert scenes is not None
    truth = world.masks(scenes)[:, :1]
    assert float(metrics.overlap(made.images["Chosen Regions"][:, :1], truth)) > 0.6
    assert made.images["After"].shape == made.images["Attention Map Viewer"].shape
    assert min(made.images["After"].shape[-2:]) > 3 * 256, "nine words in three rows and columns"
    assert made.images["Components"].shape == made.images["Before"].shape


def test_a_mask_from_words_is_of_the_object(edit: Made) -> None:
    if edit.name == "mask-from-words":
        scenes = expected.scene_of(edit.prompt)
        assert scenes is not None
        truth, found = world.masks(scenes)[:, :1] > 0.5, edit.images["May Change"][:, :1] > 0.5
        assert (found & truth).sum() > 0.95 * truth.sum()
        # The Edit Masks node grows it for the new object.
        assert found.sum() < 3 * truth.sum()


def test_a_saved_inversion_is_the_same_after_loading(inversion_check: Made, server: ComfyServer) -> None:
    """The muted Load Inversion of the workflow, in the place of DDIM Inversion."""
    files = sorted((server.base / "output" / "inversions").glob("photo_*.safetensors"))
    assert files
    prompt = prompt_of(server, "inversion-check")
    prompt[find_node(prompt, "AttnEditInvert")] = {
        **{"class_type": "AttnEditLoadInversion", "inputs": {"file": files[-1].name}},
        "_meta": {"title": "Load Inversion"},
    }
    del prompt[find_node(prompt, "AttnEditSaveInversion")]
    loaded = execute(server, "loaded", prompt)
    assert torch.equal(loaded.images["Reconstruction"], inversion_check.images["Reconstruction"])


def test_each_region_shows_its_own_prompt(server: ComfyServer) -> None:
    """Read from the pixels: one object on either side, as that side's prompt has it."""
    made = execute(server, "two-regions", prompt_of(server, "two-regions"))
    reading = reader.read(made.images["After"][0])
    seen = [f"{world.COLOURS[thing.colour]} {world.SHAPES[thing.shape]}" for thing in by_place(reading.objects)]
    texts = [made.prompt[find_node(made.prompt, f"{side} Prompt")]["inputs"]["text"] for side in ("Left", "Right")]
    assert len(seen) == 2
    assert all(thing in text for thing, text in zip(seen, texts, strict=True)), (seen, texts)
    assert made.images["First Region"][0, 0, :, :64].min() == 1 and made.images["First Region"][..., 64:].max() == 0


def by_place(objects: Any) -> list[Any]:
    """Objects of a reading from left to right."""
    return sorted(objects, key=lambda thing: float(np.nonzero(thing.mask)[-1].mean()))
