"""Every node says what it is: schema, help page, a workflow that shows it. Importing the pack changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from attention_edit.nodes import NODES

if TYPE_CHECKING:
    from machine.comfy_server import ComfyServer

PACK = Path(__file__).resolve().parents[2]
SCHEMAS = {schema.node_id: schema for schema in (node.define_schema() for node in NODES)}
NUMBERS = ("INT", "FLOAT")
every_node = pytest.mark.parametrize("name", SCHEMAS)


@pytest.fixture(scope="module")
def info(server: ComfyServer) -> dict[str, Any]:
    """The pack's node definitions as the server gives them to the front end."""
    found = server.object_info()
    return {name: entry for name, entry in found.items() if entry["python_module"].endswith("attention-edit")}


def inputs_of(entry: dict[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Type and options of every input."""
    found = {**entry["input"].get("required", {}), **entry["input"].get("optional", {})}
    return {name: (spec[0], spec[1] if len(spec) > 1 else {}) for name, spec in found.items()}


def test_the_server_has_all_nodes(info: dict[str, Any]) -> None:
    assert set(info) == set(SCHEMAS)
    assert len(NODES) == len(SCHEMAS), "two nodes have the same id"


def test_display_names_are_distinct() -> None:
    names = [schema.display_name for schema in SCHEMAS.values()]
    assert len(set(names)) == len(names)


@every_node
def test_describes_itself(name: str, info: dict[str, Any]) -> None:
    entry = info[name]
    assert name.startswith("AttnEdit")
    assert entry["display_name"] and not entry["display_name"].startswith("AttnEdit")
    assert entry["category"] == "attention edit" or entry["category"].startswith("attention edit/")
    assert len(entry["description"]) > 40


@every_node
def test_has_tooltips(name: str, info: dict[str, Any]) -> None:
    without = [key for key, (_, options) in inputs_of(info[name]).items() if not options.get("tooltip")]
    assert without == []
    assert len(info[name]["output_tooltips"]) == len(info[name]["output"])
    assert all(info[name]["output_tooltips"])


@every_node
def test_outputs_have_distinct_names(name: str, info: dict[str, Any]) -> None:
    assert all(info[name]["output_name"])
    assert len(set(info[name]["output_name"])) == len(info[name]["output_name"])


@every_node
def test_defaults_are_allowed(name: str, info: dict[str, Any]) -> None:
    for key, (kind, options) in inputs_of(info[name]).items():
        if kind in NUMBERS:
            assert options["min"] <= options["default"] <= options["max"], key
            assert options.get("step", 1) > 0, key
        if kind == "COMBO" and "default" in options:
            assert options["default"] in options["options"], key


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("ddim inverse", "AttnEditInvert"),
        ("unsampler", "AttnEditInvert"),
        ("reconstruction", "AttnEditReconstruct"),
        ("null-text", "AttnEditNullText"),
        ("nti", "AttnEditNullText"),
        ("dpl", "AttnEditDPL"),
        ("attention leakage", "AttnEditDPL"),
        ("foreground mask", "AttnEditBackgroundMask"),
        ("negative prompt inversion", "AttnEditNegativePrompt"),
        ("renoise", "AttnEditFixedPoint"),
        ("pnp inversion", "AttnEditDirect"),
        ("mask guidance", "AttnEditMasks"),
        ("loss plot", "AttnEditGuidanceCurve"),
        ("paste back", "AttnEditComposite"),
        ("diffedit", "AttnEditDiffMask"),
        ("mask refinement", "AttnEditRefineMask"),
        ("inverted noise", "AttnEditSetup"),
        ("text encode", "AttnEditPrompt"),
        ("daam", "AttnEditRecordMaps"),
        ("text to mask", "AttnEditMapMask"),
        ("heat map", "AttnEditMapViewer"),
        ("k-means", "AttnEditSelfMaps"),
        ("generated image", "AttnEditRecordSource"),
        ("xy plot", "AttnEditSweep"),
        ("multi-turn", "AttnEditNextTurn"),
    ],
)
def test_is_found_by_what_people_search(words: str, name: str, info: dict[str, Any]) -> None:
    """The front end searches names and aliases. Of methods, tests/test_house.py wants the name of their paper there."""
    texts = [info[name]["display_name"], *info[name]["search_aliases"]]
    assert any(words in text.lower() for text in texts)


@every_node
def test_has_words_to_be_searched_by(name: str, info: dict[str, Any]) -> None:
    """Several, in small letters, which its name does not say already by itself."""
    aliases, title = info[name]["search_aliases"], info[name]["display_name"]
    assert len(set(aliases)) == len(aliases) >= 2
    assert all(words == words.lower().strip() for words in aliases)
    assert any(words not in title.lower() for words in aliases)


@every_node
def test_has_a_help_page(name: str, info: dict[str, Any], server: ComfyServer) -> None:
    """A page that names every input, and that the server hands out where the front end looks for it."""
    page = (PACK / "js" / "docs" / f"{name}.md").read_text("utf-8")
    assert page.startswith(f"# {info[name]['display_name']}\n")
    missing = [key for key in inputs_of(info[name]) if f"**{key}**" not in page]
    assert missing == []
    assert all(word in page for word in info[name]["output_name"])
    served = server._request(f"/extensions/attention-edit/docs/{name}.md").decode()
    assert served.replace("\r\n", "\n") == page


def test_every_help_page_has_a_node() -> None:
    assert {path.stem for path in (PACK / "js" / "docs").glob("*.md")} == set(SCHEMAS)


@every_node
def test_is_shown_in_a_workflow(name: str) -> None:
    files = sorted((PACK / "workflows").glob("*.json"))
    used = {node["type"] for path in files for node in json.loads(path.read_text("utf-8"))["nodes"]}
    assert name in used


# Runs in a process of its own: loads the host, then the pack, and prints what the latter changed and how long it took.
IMPORT = """
import asyncio, importlib.util, json, sys, time, types
sys.path.insert(0, sys.argv[1])
pack = sys.argv[2]
sys.argv = [sys.argv[0], "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import nodes, comfy.utils, comfy.sampler_helpers, comfy_api.latest, latent_preview
import PIL.ImageDraw, PIL.ImageFont, safetensors.torch

def snapshot():
    seen = {}
    for name, module in list(sys.modules.items()):
        if not name.startswith(("comfy", "nodes", "execution", "folder_paths", "latent_preview", "torch.nn")):
            continue
        for key, value in list(vars(module).items()):
            if isinstance(value, types.ModuleType) or key == "__warningregistry__":
                continue
            seen[f"{name}.{key}"] = id(value)
            if isinstance(value, type) and value.__module__ == name:
                for inner, attribute in list(vars(value).items()):
                    if not inner.startswith(("__", "_abc_")):
                        seen[f"{name}.{key}.{inner}"] = id(attribute)
    return seen

before, known, hooks = snapshot(), set(sys.modules), len(sys.meta_path)
start = time.process_time()
spec = importlib.util.spec_from_file_location("the_pack", pack + "/__init__.py", submodule_search_locations=[pack])
module = importlib.util.module_from_spec(spec)
sys.modules["the_pack"] = module
spec.loader.exec_module(module)
found = asyncio.run(asyncio.run(module.comfy_entrypoint()).get_node_list())
seconds = time.process_time() - start
after = snapshot()
changed = [key for key in before if after.get(key) != before[key]]
# A module that was not loaded before is no change of the host; an attribute that a loaded one gained is.
added = [key for key in after if key not in before and any(key.startswith(name + ".") for name in known)
         and not any(key.startswith(name + ".") for name in set(sys.modules) - known)]
print(json.dumps({"changed": changed, "added": added, "seconds": seconds, "nodes": len(found),
                  "compared": len(before), "hooks": len(sys.meta_path) - hooks}))
"""


def test_import_changes_nothing_and_is_quick(host: Path, tmp_path: Path) -> None:
    """Only the pack's own code: less than 0.3 s of CPU time, and no attribute of the host is another afterwards.

    The time is that of a second start, for which Python has kept what it compiled at the first.
    """
    command = [sys.executable, "-c", IMPORT, str(host), str(PACK)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    for _start in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables, cwd=host)
        assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["compared"] > 5000
    assert told["nodes"] == len(NODES)
    assert (told["changed"], told["added"], told["hooks"]) == ([], [], 0)
    assert told["seconds"] < 0.3


def test_a_bypassed_composite_hands_on_the_edit() -> None:
    """The front end hands on the first input of the output's type: the original would be an edit that vanished."""
    images = [entry.id for entry in SCHEMAS["AttnEditComposite"].inputs if entry.io_type == "IMAGE"]
    assert images[0] == "edited"
