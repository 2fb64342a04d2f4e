"""Runs files of workflows/ on a server and reads what they drew."""

from __future__ import annotations

import asyncio
import io
import json
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from bundle import world
from machine.prompt_result import PromptResult
from PIL import Image
from scenes import metrics, reader
from show.workflow_file import Prompt, find_node, read_workflow, to_prompt
from torch import Tensor

if TYPE_CHECKING:
    from machine.comfy_server import ComfyServer

FOLDER = Path(__file__).resolve().parents[2] / "workflows"
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
    decodes = {name: entry["inputs"] for name, entry in prompt.items() if entry["class_type"] == "VAEDecode"}
    samplers = ("KSampler", "SamplerCustomAdvanced")
    edit = next(name for name, given in decodes.items() if prompt[given["samples"][0]]["class_type"] in samplers)
    inputs = {"images": [edit, 0]}
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


PREVIEWS, TEXTS = (1, 4), (3,)
"""The host's numbers of binary messages that hold a preview, and a line of text for the running node."""


def binary_messages(server: ComfyServer, prompt: Prompt, kinds: tuple[int, ...]) -> list[bytes]:
    """What a prompt's run sends to the front end, of some kinds, with previews on."""
    found: list[bytes] = []

    async def listen() -> None:
        import aiohttp

        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{server.url}/ws?clientId=listener") as channel,
        ):
            extra = {"preview_method": "latent2rgb"}
            body = {"prompt": prompt, "client_id": "listener", "extra_data": extra}
            async with session.post(f"{server.url}/prompt", json=body) as answer:
                assert answer.status == 200, await answer.text()
            async for message in channel:
                if message.type == aiohttp.WSMsgType.BINARY and struct.unpack(">I", message.data[:4])[0] in kinds:
                    found.append(message.data)
                if message.type == aiohttp.WSMsgType.TEXT:
                    told = json.loads(message.data)
                    assert told["type"] != "execution_error", told
                    if told["type"] == "execution_success":
                        return

    # In a thread of its own: the browser's fixture has an event loop running in this one.
    with ThreadPoolExecutor() as threads:
        threads.submit(lambda: asyncio.run(asyncio.wait_for(listen(), 120))).result()
    return found


def named(scenes: world.Scenes, slot: int) -> tuple[int, int]:
    return int(scenes.shape[0, slot]), int(scenes.colour[0, slot])


def assert_kept(made: Made) -> None:
    """Outside the changed mask the decoded edit loses at most 0.5 dB to what the autoencoder loses by itself."""
    kept = 1 - metrics.dilate(made.images["May Change"][:, :1], MARGIN)
    assert kept.sum() > 1000
    alone = metrics.psnr(made.images["Round trip"], made.images["Before"], kept)
    edited = metrics.psnr(made.images["Decoded"], made.images["Before"], kept)
    assert edited > alone - 0.5


def assert_reads(image: Tensor, caption: str) -> None:
    """An image (1, 3, S, S) shows the objects of a caption, nothing else, on its ground if that is named."""
    words, reading = caption.split(), reader.read(image[0])
    pairs = pairwise(words)
    wanted = [(colour, shape) for colour, shape in pairs if colour in world.COLOURS and shape in world.SHAPES]
    found = [(world.COLOURS[thing.colour], world.SHAPES[thing.shape]) for thing in reading.objects]
    assert sorted(found) == sorted(wanted)
    grounds = [word for word in words if word in world.BACKGROUNDS]
    assert not grounds or grounds == [world.BACKGROUNDS[reading.background]]


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
