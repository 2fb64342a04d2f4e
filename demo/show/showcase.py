"""What `python demo` does inside the private environment: run workflows on a real server, make sheets, score."""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import os
import re
import signal
import subprocess
import sys
import time
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine.base_directory import base_directory
from machine.cache_folder import cache_folder
from machine.comfy_server import ComfyServer
from machine.host_source import PACK, PreparationError
from machine.prompt_result import PromptError, ServerError
from PIL import Image
from show import blueprints, checkpoints, locales, own_picture, sheets
from show import options as command_line
from show.workflow_file import (
    Prompt,
    WorkflowError,
    find_node,
    override,
    read_workflow,
    to_prompt,
    without_download,
)

WORKFLOWS = PACK / "workflows"
PICTURES = PACK / "demo" / "pictures"
PAPER_STEPS, PAPER_GUIDANCE = 50, 7.5
FIRST = command_line.WORKFLOWS["replace"]


def say(text: str) -> None:
    """One line of what is going on."""
    print(f"[attention-edit] {text}", flush=True)


class Progress:
    """Progress of one prompt as lines: rewritten in a terminal, else one per node."""

    def __init__(self, name: str, prompt: Prompt) -> None:
        self._name, self._prompt = name, prompt
        self._live = sys.stdout.isatty()
        self._node = ""

    def __call__(self, node_id: str, done: int, total: int) -> None:
        """The server's report on one node."""
        entry = self._prompt.get(node_id)
        if entry is None or total < 2:
            return
        text = f"{self._name}: {entry['_meta']['title']}"
        if self._live:
            print(f"\r\033[K  {text} {done}/{total}", end="", flush=True)
        elif node_id != self._node:
            print(f"  {text}, {total} steps", flush=True)
        self._node = node_id

    def close(self) -> None:
        """Clear the live line."""
        if self._live:
            print("\r\033[K", end="", flush=True)


@dataclass(frozen=True)
class Run:
    """What a workflow made, by the name of its column, in the order of the sheet."""

    name: str
    title: str
    images: dict[str, Image.Image]


COLUMNS = {
    "Before": "before",
    "May Change": "mask",
    "First Region": "mask",
    "Sketch": "sketch",
    "Heat": "heat",
    "Components": "components",
    "Reconstruction": "reconstruction",
    "After": "after",
}
"""Which node's picture, by its title, goes into which column of a sheet."""
STRIP = ("cpam-background", "cpam-keep-object", "cpam-remove", "cpam-replace")
"""The workflows of the README's first picture."""


def run(server: ComfyServer, name: str, prompt: Prompt, workflow: Any = None) -> Run:
    """Run one prompt and fetch its pictures.

    Raises:
        ServerError: the prompt was refused or a node failed; the text names the workflow and the node.
    """
    from scenes import expected

    progress = Progress(name, prompt)
    start = time.monotonic()
    try:
        result = server.run(prompt, on_progress=progress, workflow=workflow)
    except PromptError as error:
        node = prompt.get(str(error.node_id), {}).get("_meta", {}).get("title", "the server")
        # The host puts the pack's whole path before the names of the pack's own errors.
        message = re.sub(r"^\S*\.(\w+: )", r"\1", error.message)
        raise ServerError(f"{name} failed at {node}: {message}") from error
    finally:
        progress.close()
    images: dict[str, Image.Image] = {}
    for title, column in COLUMNS.items():
        for number, entry in prompt.items():
            found = result.images(number) if entry["_meta"]["title"] == title else []
            if found:
                images[column] = Image.open(io.BytesIO(server.fetch(found[0]))).convert("RGB")
    task, text = expected.task_of(prompt), expected.text_of(prompt)
    truth = expected.truth_of(prompt)
    if truth is not None:
        images["truth"] = _rendered(truth)
    say(f"{name}: {time.monotonic() - start:.0f} s")
    return Run(name, ": ".join(part for part in (task or name, text) if part), images)


def _rendered(scenes: Any) -> Image.Image:
    from bundle import world

    pixels = world.render(scenes)[0].movedim(0, -1).mul(255).round().byte().numpy()
    return Image.fromarray(pixels)


def load(server: ComfyServer, name: str) -> tuple[Prompt, Any]:
    """A shipped workflow as an API prompt and as its file holds it."""
    workflow = read_workflow(WORKFLOWS / f"{name}.json")
    return to_prompt(workflow, server.object_info()), workflow


def run_shipped(server: ComfyServer, output: Path) -> list[Run]:
    """Run every shipped workflow and write its sheet."""
    runs = []
    for path in without_download(WORKFLOWS):
        made = run(server, path.stem, *load(server, path.stem))
        sheets.sheet(made.images, made.title).save(output / f"{made.name}.png")
        runs.append(made)
    return runs


def run_own(server: ComfyServer, chosen: argparse.Namespace, picture: own_picture.OwnPicture) -> Path:
    """Edit the user's own picture; returns the path of the full photograph, edited. A sheet is saved beside it."""
    name = command_line.WORKFLOWS[chosen.task]
    prompt, _ = load(server, name)
    uploaded = []
    for part, image in (("before", picture.image), ("mask", picture.mask)):
        path = chosen.output / f"{part}.png"
        image.save(path)
        uploaded.append(server.upload(path, f"attention-edit-{part}.png"))
    own_picture.put_in(prompt, uploaded[0], uploaded[1], picture.checkpoint, chosen.size or 0)
    if chosen.prompt is not None and chosen.task != "remove":
        override(prompt, "Edit Prompt", text=chosen.prompt)
    # The workflows' own numbers suit the demo model, the papers' a real one.
    steps, guidance = (None, None) if picture.checkpoint is None else (PAPER_STEPS, PAPER_GUIDANCE)
    steps, guidance = chosen.steps or steps, guidance if chosen.guidance is None else chosen.guidance
    if steps is not None:
        override(prompt, "AttnEditInvert", steps=steps)
    if guidance is not None:
        guider = next(kind for kind in ("KSampler", "CFGGuider") if _has(prompt, kind))
        override(prompt, guider, cfg=guidance)
    made = run(server, name, prompt)
    path = chosen.output / "after.png"
    made.images["after"].save(path)
    sheets.sheet(made.images, made.title).save(chosen.output / "sheet.png")
    return path


def new_folder(output: Path, name: str) -> Path:
    """A folder for the files of one run alone: `name`, or `name 2` and so on where there is one."""
    names = (name if count == 1 else f"{name} {count}" for count in itertools.count(1))
    folder = next(folder for folder in (output / each for each in names) if not folder.exists())
    folder.mkdir(parents=True)
    return folder


def _has(prompt: Prompt, kind: str) -> bool:
    try:
        return bool(find_node(prompt, kind))
    except WorkflowError:
        return False


def write_thumbnails(runs: list[Run]) -> None:
    """The template browser's pictures, and the README's, from real results."""
    for made in runs:
        after = made.images["after" if "after" in made.images else "reconstruction"]
        picture = sheets.thumbnail(made.images.get("before"), after)
        picture.save(WORKFLOWS / f"{made.name}.jpg", quality=90)
        say(f"wrote workflows/{made.name}.jpg")
    checkpoints.write()  # with the new picture of the workflow that they are made of
    edits = [made for made in runs if made.name in STRIP]
    PICTURES.mkdir(exist_ok=True)
    pairs = [(made.title.split(": ")[-1], made.images["before"], made.images["after"]) for made in edits]
    sheets.strip(pairs).save(PICTURES / "edits.png")
    sheets.icon(*pairs[-1][1:]).save(PICTURES / "icon.png")
    sheets.banner("Attention Edit", pairs).save(PICTURES / "banner.png")
    say("wrote demo/pictures/edits.png, icon.png and banner.png")


def serve(server: ComfyServer, open_page: Callable[[str], Any] = webbrowser.open) -> None:
    """Open the first workflow in the browser and wait until Ctrl-C."""
    address = f"{server.url}/?template={FIRST}&source=attention-edit"
    say(f"ComfyUI with the demo workflow: {address}")
    say("The others: Workflow > Browse Templates > attention-edit. Ctrl-C stops the server.")
    open_page(address)
    while True:
        time.sleep(2)
        if not server.alive:
            raise ServerError(f"ComfyUI has ended:\n{server.log_tail()}")


def scores(chosen: argparse.Namespace) -> int:
    """Print the scores, in a process of its own: there the host runs without a server."""
    say(f"Scores against the known truth on {chosen.scenes} scenes per task (--no-scores leaves them out):")
    folder = chosen.output / "scores"
    command = [sys.executable, str(PACK / "demo" / "inside.py"), "scores", str(chosen.scenes), str(folder)]
    return subprocess.run(command, check=False).returncode


def demo(chosen: argparse.Namespace) -> int:
    """Do what the command line says; returns the exit code."""
    if chosen.blueprints:
        for path in [*blueprints.write(), *checkpoints.write()]:
            say(f"wrote {path.parent.name}/{path.name}")
        return 0
    host = Path(os.environ["ATTENTION_EDIT_HOST"])
    # Two copies of the pack must not share one base directory: each links to its own pack.
    base = base_directory(cache_folder() / f"demo-{hashlib.sha256(str(PACK).encode()).hexdigest()[:8]}")
    picture = None
    if chosen.image is not None:
        name = None
        if chosen.checkpoint is not None:
            name = own_picture.link_checkpoint(own_picture.find_checkpoint(chosen.checkpoint, host), base)
        picture = own_picture.prepare(chosen.image, chosen.mask, name)
    if not (chosen.serve or chosen.locales):
        title = "workflows" if chosen.image is None else f"{chosen.image.stem} {chosen.task}"
        chosen.output = new_folder(chosen.output.expanduser().absolute(), title)
    say("starting ComfyUI")
    with ComfyServer(Path(sys.executable), host, base) as server:
        if chosen.serve:
            serve(server)
        if chosen.locales:
            for path in locales.write(server.object_info().values()):
                say(f"wrote {path.relative_to(PACK)}")
            return 0
        if picture is not None:
            say(f"Your photograph, edited: {run_own(server, chosen, picture)}")
            return 0
        runs = run_shipped(server, chosen.output)
    if chosen.thumbnails:
        write_thumbnails(runs)
        return 0
    code = 0 if chosen.no_scores else scores(chosen)
    say(f"Pictures: {chosen.output}")
    return code


def _stop(*_: Any) -> None:
    """Ctrl-C and the like end the run once; a second one must not disturb the server's end."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main(arguments: list[str]) -> int:
    """Parse the command line again, inside the environment, and turn errors into readable lines."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        return demo(command_line.parse(arguments))
    except (PreparationError, ServerError, WorkflowError, own_picture.PictureError, TimeoutError) as error:
        print(f"[attention-edit] {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        say("stopped")
        return 130
