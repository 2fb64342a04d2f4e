"""The nodes' words in other languages: complete, without leftovers, and handed to the front end.

locales/en is generated (`python demo --locales`); the others are written by hand with the same keys.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from attention_edit.nodes import NODES
from house import in_brackets
from show import locales

if TYPE_CHECKING:
    from machine.comfy_server import ComfyServer
    from playwright.sync_api import Browser

FILES = ("main.json", "nodeDefs.json")
ENGLISH = locales.english([node.GET_NODE_INFO_V1() for node in NODES])
OTHERS = sorted(folder.name for folder in locales.LOCALES.iterdir() if folder.name != "en")
SCRIPTS = {"zh": "[\u4e00-\u9fff]"}
"""Letters by which a language is told from English."""
SYNTAX = "{}@|"
"""What vue-i18n, by which the front end reads texts, takes for placeholders, links and plurals."""
every_file = pytest.mark.parametrize("name", FILES)
every_language = pytest.mark.parametrize("language", OTHERS)


def read(language: str, name: str) -> dict[str, Any]:
    return json.loads((locales.LOCALES / language / name).read_text("utf-8"))


def leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every text of a locale file and where it stands."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def lacking(wanted: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a tree of texts that another has not, or has empty."""
    found: dict[str, Any] = {}
    for key, value in wanted.items():
        if isinstance(value, Mapping):
            inner = given.get(key)
            left = lacking(value, inner if isinstance(inner, Mapping) else {})
            if left:
                found[key] = left
        elif not given.get(key):
            found[key] = value
    return found


def test_what_a_language_lacks_is_found_wherever_it_is() -> None:
    wanted = {"A": {"name": "a", "inputs": {"x": {"name": "x"}}}, "B": {"name": "b"}}
    given = {"A": {"name": "a'", "inputs": {"x": {"name": ""}}}}
    assert lacking(wanted, given) == {"A": {"inputs": {"x": {"name": "x"}}}, "B": {"name": "b"}}
    assert not lacking(wanted, wanted)


@every_file
def test_english_is_what_the_schemas_say(name: str) -> None:
    written = (locales.LOCALES / "en" / name).read_text("utf-8")
    assert written == locales.as_text(ENGLISH[name]), f"locales/en/{name} is old: run `python demo --locales`"


@every_file
@every_language
def test_a_translation_is_complete(language: str, name: str) -> None:
    missing = lacking(ENGLISH[name], read(language, name))
    text = json.dumps(missing, ensure_ascii=False, indent=2)
    assert not missing, f"To be pasted into locales/{language}/{name} and translated:\n{text}"


@every_file
@every_language
def test_a_translation_holds_nothing_that_is_gone(language: str, name: str) -> None:
    gone = lacking(read(language, name), ENGLISH[name])
    text = json.dumps(gone, ensure_ascii=False, indent=2)
    assert not gone, f"To be taken out of locales/{language}/{name}:\n{text}"


@every_language
def test_sentences_are_translated(language: str) -> None:
    letters = re.compile(SCRIPTS[language])
    told = ("display_name", "description", "tooltip")
    left = [
        path for path, text in leaves(read(language, "nodeDefs.json")) if path[-1] in told and not letters.search(text)
    ]
    assert not left


@every_language
def test_the_name_that_messages_use_stays_in_a_nodes_name(language: str) -> None:
    """Errors are in English: "Connect Edit Setup's latent". Who searches for that finds the node in any language."""
    texts = read(language, "nodeDefs.json")
    lost = [
        f"{node}: {texts[node]['display_name']} lacks {in_brackets(entry['display_name'])}"
        for node, entry in ENGLISH["nodeDefs.json"].items()
        if in_brackets(entry["display_name"]) not in texts[node]["display_name"]
    ]
    assert not lost, "\n".join(lost)


@every_language
def test_nodes_have_different_names(language: str) -> None:
    names = [entry["display_name"] for entry in read(language, "nodeDefs.json").values()]
    assert len(set(names)) == len(names)


@every_language
def test_one_tooltip_has_one_translation(language: str) -> None:
    """Inputs that nodes share say the same everywhere."""
    translated = dict(leaves(read(language, "nodeDefs.json")))
    said: dict[str, set[str]] = defaultdict(set)
    for path, text in leaves(ENGLISH["nodeDefs.json"]):
        if path[-1] in ("tooltip", "description") or path[-2:-1] == ("options",):
            said[text].add(translated[path])
    assert not {text: words for text, words in said.items() if len(words) > 1}


@every_language
def test_names_of_one_node_are_distinct(language: str) -> None:
    for node, entry in read(language, "nodeDefs.json").items():
        for group in ("inputs", "outputs"):
            names = [each["name"] for each in entry[group].values()]
            assert len(set(names)) == len(names), f"{node}: {group}"


@every_file
@pytest.mark.parametrize("language", ["en", *OTHERS])
def test_texts_hold_nothing_that_the_front_end_takes_for_syntax(language: str, name: str) -> None:
    texts = list(leaves(read(language, name)))
    assert not [path for path, text in texts if any(sign in text for sign in SYNTAX)]
    assert not [path for path, _ in texts if any("." in key or "'" in key or '"' in key for key in path)]


def test_the_server_hands_them_out(server: ComfyServer) -> None:
    """As the front end asks for them when it starts."""
    given = server.get("/i18n")
    for language in ("en", *OTHERS):
        assert given[language]["nodeDefs"] == read(language, "nodeDefs.json")
        assert given[language]["nodeCategories"] == read(language, "main.json")["nodeCategories"]


SHOWN = """() => {
    const node = LiteGraph.createNode("AttnEditMasks")
    return {
        title: node.title,
        category: node.constructor.category,
        widget: node.widgets.find((widget) => widget.name === "task").label,
        input: node.inputs.find((input) => input.name === "mask").localized_name,
        outputs: node.outputs.map((output) => output.localized_name),
    }
}"""


@every_language
def test_the_front_end_shows_them(language: str, server: ComfyServer, browser: Browser) -> None:
    """A node as it is made in the front end of that language."""
    texts, parts = read(language, "nodeDefs.json")["AttnEditMasks"], read(language, "main.json")["nodeCategories"]
    server.post("/settings", {"Comfy.TutorialCompleted": True, "Comfy.Locale": language})
    page = browser.new_page()
    try:
        page.goto(server.url, timeout=180_000)
        page.wait_for_function("!!window.LiteGraph?.registered_node_types.AttnEditMasks", timeout=120_000)
        shown = page.evaluate(SHOWN)
    finally:
        page.close()
        server.post("/settings", {"Comfy.Locale": "en"})
    assert shown == {
        "title": texts["display_name"],
        "category": "/".join(parts[part] for part in ("attention edit", "masks")),
        "widget": texts["inputs"]["task"]["name"],
        "input": texts["inputs"]["mask"]["name"],
        "outputs": [entry["name"] for entry in texts["outputs"].values()],
    }


def test_every_language_of_a_folder_is_a_language_of_these_tests() -> None:
    assert sorted(SCRIPTS) == OTHERS
    assert all(Path(locales.LOCALES / language / name).is_file() for language in OTHERS for name in FILES)
