"""Every file of workflows/ runs on a real ComfyUI server as it is shipped, and its pictures show what it promises."""

from __future__ import annotations

import asyncio
import io
import json
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import expected
import metrics
import numpy as np
import pytest
import reader
import torch
import world
from comfy_server import PromptError, PromptInterrupted
from PIL import Image
from prompt_result import PromptResult
from torch import Tensor
from workflow_file import Prompt, find_node, override, read_workflow, to_prompt

if TYPE_CHECKING:
    from comfy_server import ComfyServer

pytestmark = pytest.mark.server

FOLDER = Path(__file__).resolve().parents[1] / "workflows"
FILES = sorted(FOLDER.glob("*.json"))
EDITS = [path for path in FILES if "AttnEditMasks" in path.read_text("utf-8")]
INJECTIONS = ("embctrl", "fpe", "masactrl", "p2p-refine-reweight", "p2p-swap", "pnp")
"""Edits that take no mask."""
MARGIN = 16
"""Pixels around the changed mask that do not count: a latent cell changes as a whole, and the decoder mixes it into
the next one. Cells are 8 pixels wide."""


@dataclass(frozen=True)
class Made:
    """A workflow that has run."""

    name: str
    prompt: Prompt
    result: PromptResult
    images: dict[str, Tensor]
    """(1, 3, H, W) in 0..1 by the title of the node that shows it."""


def picture(data: bytes) -> Tensor:
    """An image file as (1, 3, H, W) in 0..1."""
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(pixels).movedim(-1, 0)[None]


def prompt_of(server: ComfyServer, name: str) -> Prompt:
    return to_prompt(read_workflow(FOLDER / f"{name}.json"), server.object_info())


def add_outputs(prompt: Prompt) -> None:
    """Two more outputs: the edit as it is decoded, and what the autoencoder alone makes of the source."""
    inputs = {"images": [find_node(prompt, "VAEDecode"), 0]}
    prompt["decoded"] = {"class_type": "PreviewImage", "inputs": inputs, "_meta": {"title": "Decoded"}}
    encode = find_node(prompt, "VAEEncode")
    vae = prompt[encode]["inputs"]["vae"]
    decode = {"class_type": "VAEDecode", "inputs": {"samples": [encode, 0], "vae": vae}, "_meta": {"title": "Decode"}}
    prompt["trip_decode"] = decode
    inputs = {"images": ["trip_decode", 0]}
    prompt["trip"] = {"class_type": "PreviewImage", "inputs": inputs, "_meta": {"title": "Round trip"}}


def execute(server: ComfyServer, name: str, prompt: Prompt) -> Made:
    result = server.run(prompt)
    images = {
        prompt[node]["_meta"]["title"]: picture(server.fetch(shown["images"][0]))
        for node, shown in result.outputs.items()
        if shown.get("images")
    }
    return Made(name, prompt, result, images)


@pytest.fixture(scope="module", params=EDITS, ids=lambda path: path.stem)
def edit(request: pytest.FixtureRequest, server: ComfyServer) -> Made:
    """A shipped edit, run once for all tests."""
    prompt = prompt_of(server, request.param.stem)
    add_outputs(prompt)
    return execute(server, request.param.stem, prompt)


@pytest.fixture(scope="module")
def inversion_check(server: ComfyServer) -> Made:
    return execute(server, "inversion-check", prompt_of(server, "inversion-check"))


def test_all_workflows_are_run_here() -> None:
    others = {"attention-viewer", "fast-inversion", "inversion-check", "null-text-inversion", "two-regions"}
    others |= {*INJECTIONS, "mag-edit", "sweep"}
    assert {path.stem for path in FILES} == {path.stem for path in EDITS} | others


def test_shows_the_scene_and_an_edit_of_its_size(edit: Made) -> None:
    scenes = expected.scene_of(edit.prompt)
    assert scenes is not None
    assert torch.allclose(edit.images["Before"], world.render(scenes), atol=1 / 255)
    assert edit.images["After"].shape == edit.images["Before"].shape
    assert metrics.psnr(edit.images["After"], edit.images["Before"]) < 35, "nothing was edited"


def assert_kept(made: Made) -> None:
    """Outside the changed mask the decoded edit loses at most 0.5 dB to what the autoencoder loses by itself."""
    kept = 1 - metrics.dilate(made.images["May Change"][:, :1], MARGIN)
    assert kept.sum() > 1000
    alone = metrics.psnr(made.images["Round trip"], made.images["Before"], kept)
    edited = metrics.psnr(made.images["Decoded"], made.images["Before"], kept)
    assert edited > alone - 0.5


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


def named(scenes: world.Scenes, slot: int) -> tuple[int, int]:
    return int(scenes.shape[0, slot]), int(scenes.colour[0, slot])


def assert_shows(image: Tensor, scenes: world.Scenes) -> None:
    """An image (1, 3, S, S) shows each object of a scene in its place, nothing else, on its ground."""
    reading = reader.read(image[0])
    present = [slot for slot in range(2) if scenes.shape[0, slot] != world.NOTHING]
    for slot in present:
        place = metrics.dilate(world.masks(scenes)[:, slot : slot + 1], world.SIZE // 32)[0]
        found = reader.inside(reading, place)
        assert found is not None, f"nothing where {named(scenes, slot)} was expected"
        assert (found.shape, found.colour) == named(scenes, slot)
    assert len(reading.objects) == len(present)
    assert reading.background == int(scenes.background[0])


def test_shows_what_the_prompt_says(edit: Made) -> None:
    """Read from the pixels: the new object, no object, or the new ground, and all that had to stay."""
    truth = expected.truth_of(edit.prompt)
    if truth is not None and edit.name != "proposal-mask":
        assert_shows(edit.images["After"], truth)
        return
    # Whatever lies in the region, wherever it does, with the prompt's colour: a region or a proposed mask has not the
    # outline that the object would have. Outside of it nothing changes, which another test shows.
    place = metrics.dilate(edit.images["May Change"][:, :1], world.SIZE // 32)[0]
    found = reader.inside(reader.read(edit.images["After"][0]), place)
    text = expected.text_of(edit.prompt).split()
    assert found is not None and world.COLOURS[found.colour] in text
    if edit.name == "add-object":
        assert world.SHAPES[found.shape] in text


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


def test_edits_without_a_mask_act(injection: Made, server: ComfyServer) -> None:
    """Without its edit node the workflow draws another picture."""
    prompt = prompt_of(server, injection.name)
    if injection.name == "embctrl":
        plain = find_node(prompt, "Edit Prompt")
        prompt[find_node(prompt, "KSampler")]["inputs"]["positive"] = [plain, 0]
    else:
        prompt[find_node(prompt, "AttnEditSetup")]["inputs"]["model"] = [find_node(prompt, "AttnEditDemoModel"), 0]
    without = execute(server, injection.name, prompt).images["After"]
    assert not torch.equal(injection.images["After"], without)


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


def fresh(server: ComfyServer, steps: int) -> Prompt:
    """The replace workflow with other steps, none of it cached: the server forgets what it has."""
    server.post("/free", {"unload_models": True, "free_memory": True})
    prompt = prompt_of(server, "cpam-replace")
    override(prompt, "AttnEditInvert", steps=steps)
    override(prompt, "KSampler", steps=steps)
    return prompt


def test_reports_progress(server: ComfyServer) -> None:
    """Inversion and edit count from 1 to their last step."""
    prompt = fresh(server, 8)
    seen: dict[str, list[tuple[int, int]]] = {}
    server.run(prompt, on_progress=lambda node, done, total: seen.setdefault(node, []).append((done, total)))
    for kind in ("AttnEditInvert", "KSampler"):
        reports = [report for report in seen[find_node(prompt, kind)] if report[1] > 1]
        done = [report[0] for report in reports]
        assert done == sorted(done)
        assert len(set(done)) > 2, f"{kind} reported {reports}"
        assert max(done) == reports[-1][1]


def test_sends_previews(server: ComfyServer) -> None:
    """The host's latent preview works while an edit samples: binary messages that hold a picture."""
    prompt = fresh(server, 9)
    previews: list[bytes] = []

    async def listen() -> None:
        import aiohttp

        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{server.url}/ws?clientId=previews") as channel,
        ):
            extra = {"preview_method": "latent2rgb"}
            body = {"prompt": prompt, "client_id": "previews", "extra_data": extra}
            async with session.post(f"{server.url}/prompt", json=body) as answer:
                assert answer.status == 200, await answer.text()
            async for message in channel:
                if message.type == aiohttp.WSMsgType.BINARY and struct.unpack(">I", message.data[:4])[0] in (1, 4):
                    previews.append(message.data)
                if message.type == aiohttp.WSMsgType.TEXT:
                    told = json.loads(message.data)
                    assert told["type"] != "execution_error", told
                    if told["type"] == "execution_success":
                        return

    # In a thread of its own: the browser's fixture has an event loop running in this one.
    with ThreadPoolExecutor() as threads:
        threads.submit(lambda: asyncio.run(asyncio.wait_for(listen(), 120))).result()
    assert previews
    assert b"\xff\xd8\xff" in previews[-1][:4096]  # a JPEG begins
    Image.open(io.BytesIO(previews[-1][previews[-1].index(b"\xff\xd8\xff") :])).load()


@pytest.fixture(scope="module")
def before_interrupts(server: ComfyServer) -> Iterator[Tensor]:
    yield execute(server, "before", fresh(server, 7)).images["After"]


@pytest.mark.parametrize("kind", ["AttnEditInvert", "KSampler"])
def test_interrupt(kind: str, server: ComfyServer, before_interrupts: Tensor) -> None:
    """In the middle of an inversion or an edit it ends within seconds, and the next run is what it was before."""
    prompt = fresh(server, 250)
    node, asked = find_node(prompt, kind), 0.0

    def stop(running: str, done: int, total: int) -> None:
        nonlocal asked
        if running == node and total > 1 and done >= 3 and not asked:
            asked = time.monotonic()
            server.interrupt()

    with pytest.raises(PromptInterrupted, match=kind):
        server.run(prompt, on_progress=stop, timeout=300)
    assert time.monotonic() - asked < 5
    after = execute(server, "after", fresh(server, 7))
    assert find_node(after.prompt, "KSampler") in after.result.executed
    assert torch.equal(after.images["After"], before_interrupts)


def solid(value: float, side: int) -> dict[str, Any]:
    inputs = {"value": value, "width": side, "height": side}
    return {"class_type": "SolidMask", "inputs": inputs, "_meta": {"title": "Solid"}}


@pytest.mark.parametrize(("value", "text"), [(0.0, "selects nothing"), (1.0, "selects everything")])
def test_a_mask_that_selects_nothing(value: float, text: str, server: ComfyServer) -> None:
    prompt = prompt_of(server, "cpam-replace")
    prompt["solid"] = solid(value, world.SIZE)
    prompt[find_node(prompt, "AttnEditMasks")]["inputs"]["mask"] = ["solid", 0]
    with pytest.raises(PromptError, match=f"{text}.*mask editor") as caught:
        server.run(prompt)
    assert caught.value.node_type == "AttnEditMasks"


def test_a_latent_of_another_size(server: ComfyServer) -> None:
    prompt = prompt_of(server, "cpam-replace")
    inputs = {"width": 64, "height": 64, "batch_size": 1}
    prompt["empty"] = {"class_type": "EmptyLatentImage", "inputs": inputs, "_meta": {"title": "Empty"}}
    prompt[find_node(prompt, "KSampler")]["inputs"]["latent_image"] = ["empty", 0]
    with pytest.raises(PromptError, match="Connect Edit Setup's latent") as caught:
        server.run(prompt)
    assert caught.value.node_type == "KSampler"
