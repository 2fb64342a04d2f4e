"""The house keeps its shape: which floor may import which, where the host is touched, how long things may be, and what
belongs to a method. CONTRIBUTING.md tells the same rules in words.

A rule that today's files break has its breaches in KNOWN, which is exact: a breach that is mended has to leave it.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest
from house import (
    PACK,
    ROOMS,
    circles,
    files,
    functions,
    imports,
    in_brackets,
    paper_name,
    public_names,
    texts_of,
    told,
    tree,
)

FLOORS = {
    "host": 0,
    "inversion": 1,
    "attention/words": 2,
    "attention/pictures": 2,
    "attention/engine": 3,
    "attention/maps": 4,
    "attention/masks": 5,
    "attention/methods": 6,
    "nodes": 7,
}
"""A room imports from rooms with a smaller number only, and from itself."""
HOST = ("comfy", "comfy_api", "comfy_extras", "execution", "folder_paths", "latent_preview", "nodes", "server")
"""Top-level modules of ComfyUI."""
MAY_TOUCH_HOST = {
    "host": "everything",
    "attention/engine": "everything",
    "nodes": "everything",
    "__init__.py": "the extension's entry",
    "attention/words/tokenizer.py": "reads prompts with the host's own grammar",
    "inversion/store.py": "files in the host's folders",
    "inversion/cache.py": "the cache in the host's folders",
    "inversion/file_format.py": "asks the host how much memory is free",
}
LONGEST_FILE, LONGEST_FUNCTION = 300, 50
EVERYWHERE = ("__init__.py", *ROOMS, "demo", "tests")
REPEATED = ("NODES", "log")
"""Names that mean the same in every file: a file's nodes, and its logger."""
KNOWN: dict[str, set[str]] = {}
"""Breaches that wait to be mended, by rule."""


def check(rule: str, found: Iterable[str], advice: str) -> None:
    """Fail with what breaks a rule and is not known, and with what is known and mended."""
    breaches = set(found)
    known = KNOWN.get(rule, set())
    new, mended = sorted(breaches - known), sorted(known - breaches)
    assert not new, "\n".join([advice, *new])
    assert not mended, "\n".join([f"Mended, so take it out of KNOWN[{rule!r}]:", *mended])


def room_of(name: str) -> str:
    """The room of a file (with slashes) or module (with dots): one folder deep, in attention/ two."""
    parts = name.replace(".py", "").replace("/", ".").split(".")
    return "/".join(parts[:2]) if parts[0] == "attention" else parts[0]


def method_of(name: str) -> str:
    """The method that a file or module of attention/methods belongs to; mag/ is one."""
    return name.replace(".py", "").replace("/", ".").split(".")[2]


def python_files(*tops: str) -> list[Path]:
    """Python files of folders, and files that are named themselves."""
    return [*(PACK / top for top in tops if top.endswith(".py")), *files(*(t for t in tops if not t.endswith(".py")))]


def test_floors_import_downwards() -> None:
    up = []
    for path in files(*ROOMS):
        here = room_of(told(path))
        for found in imports(path):
            there = room_of(found.module)
            if found.own and there != here and there in FLOORS and FLOORS.get(here, 99) <= FLOORS[there]:
                up.append(f"{told(path)} imports {found.module}")
    check("floors", up, "These imports go up, or sideways; what both need belongs on a floor below:")


def test_no_circles() -> None:
    found = [" <-> ".join(group) for group in circles(files(*ROOMS, "demo"))]
    check("circles", found, "These modules import each other; put what both need into a module below:")


def test_no_import_hides_from_the_floors() -> None:
    hidden = [
        told(path)
        for path in python_files("__init__.py", *ROOMS, "demo")
        if any(isinstance(node, ast.Name) and node.id == "TYPE_CHECKING" for node in ast.walk(tree(path)))
    ]
    check("hidden", hidden, "TYPE_CHECKING hides an arrow that goes up; name a Protocol on the lower floor instead:")


def test_methods_do_not_import_methods() -> None:
    across = [
        f"{told(path)} imports {found.module}"
        for path in files("attention/methods")
        for found in imports(path)
        if found.module.startswith("attention.methods.") and method_of(told(path)) != method_of(found.module)
    ]
    check("methods", across, "A method must be deletable; what two methods share belongs on a floor below:")


def test_the_pack_needs_of_the_demo_only_its_bundle_and_that_late() -> None:
    wrong = []
    for path in python_files("__init__.py", *ROOMS, "demo/bundle"):
        bundle = told(path).startswith("demo/bundle/")
        late = told(path).startswith("nodes/")
        for found in imports(path):
            of_demo = found.own and found.module.startswith("demo")
            allowed = bundle or (late and found.inside)
            if of_demo and not (found.module.startswith("demo.bundle.") and allowed):
                wrong.append(f"{told(path)} imports {found.module}")
    check("demo", wrong, "Only nodes/ may import of demo/, only demo/bundle/, and only inside of functions:")


def test_the_host_is_touched_in_few_places() -> None:
    touched = {
        (told(path), found.module.split(".")[0])
        for path in python_files("__init__.py", *ROOMS)
        for found in imports(path)
        if not found.own and found.module.split(".")[0] in HOST
    }
    allowed = [name for name, _ in touched if name in MAY_TOUCH_HOST or room_of(name) in MAY_TOUCH_HOST]
    wrong = [f"{name} imports {module}" for name, module in touched if name not in allowed]
    check("host", wrong, "Put what touches ComfyUI into host/ or attention/engine/, or name it in MAY_TOUCH_HOST:")
    unused = [name for name in MAY_TOUCH_HOST if name.endswith(".py") and name not in {n for n, _ in touched}]
    assert not unused, f"No longer touch ComfyUI, so take them out of MAY_TOUCH_HOST: {unused}"


def test_no_file_is_too_long() -> None:
    lengths = {told(path): len(path.read_text("utf-8").splitlines()) for path in python_files(*EVERYWHERE)}
    long = [name for name, lines in lengths.items() if lines > LONGEST_FILE]
    check("files", long, f"Longer than {LONGEST_FILE} lines; take out what has a name of its own:")


def test_no_function_is_too_long() -> None:
    long = [
        f"{told(path)}: {name}"
        for path in python_files(*EVERYWHERE)
        for name, lines in functions(path)
        if lines > LONGEST_FUNCTION
    ]
    check("functions", long, f"Longer than {LONGEST_FUNCTION} lines without the docstring:")


def test_public_names_are_unique() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in files(*ROOMS):
        for name in public_names(path):
            places[name].append(told(path))
    twice = [f"{name}: {', '.join(where)}" for name, where in places.items() if len(where) > 1 and name not in REPEATED]
    check("names", twice, "One word, one meaning; rename all but one, or begin it with _ where nothing else uses it:")


METHODS = {p.stem: p for p in sorted((PACK / "attention/methods").iterdir()) if not p.name.startswith("__")}
"""The file or folder of each method."""


def wanted_of(method: str) -> list[str]:
    """What is missing for a file or folder of attention/methods, as things to do."""
    node, test = PACK / f"nodes/{method}.py", PACK / f"tests/methods/test_{method}.py"
    missing = [] if test.is_file() else [f"add {told(test)}"]
    if not node.is_file():
        return [f"add nodes/{method}.py with its node, and then a help page, a workflow and more", *missing]
    ids, titles = texts_of(node, "node_id"), texts_of(node, "display_name")
    if not ids or not titles:
        return [f"give the node of nodes/{method}.py a node_id and a display_name", *missing]
    if not any(found.module == f"nodes.{method}" for found in imports(PACK / "nodes/__init__.py")):
        missing.append(f"name its node in nodes/__init__.py, from {told(node)}")
    missing += [f"add js/docs/{name}.md" for name in ids if not (PACK / f"js/docs/{name}.md").is_file()]
    shown = [path for path in (PACK / "workflows").glob("*.json") if any(f'"{name}"' in _text(path) for name in ids)]
    if not any(path.with_suffix(".jpg").is_file() for path in shown):
        missing.append(f"add a workflow with {ids[0]}, and its picture, to workflows/")
    rows = [line for line in _text(PACK / "README.md").splitlines() if line.startswith("| ")]
    if not any(in_brackets(titles[0]) in row for row in rows):
        missing.append(f"add a row with {in_brackets(titles[0])} to README.md's table of methods")
    name, words = paper_name(METHODS[method]), [*titles, *texts_of(node, "search_aliases")]
    if not any(_plain(name) in _plain(found) for found in words):
        missing.append(f"add {name!r}, by which {told(METHODS[method])} calls it, to {ids[0]}'s search_aliases")
    return missing


def _plain(words: str) -> str:
    """As it is searched: hyphens are as good as spaces."""
    return words.lower().replace("-", " ")


def _text(path: Path) -> str:
    return path.read_text("utf-8")


@pytest.mark.parametrize("method", METHODS)
def test_a_method_has_all_that_belongs_to_it(method: str) -> None:
    wanted = [f"attention/methods/{method}: {entry}" for entry in wanted_of(method)]
    known = [entry for entry in KNOWN.get("belongings", set()) if entry.startswith(f"attention/methods/{method}: ")]
    assert sorted(wanted) == sorted(known), "\n".join(["To do, or to take out of KNOWN:", *wanted, *known])


def test_the_readme_names_every_workflow() -> None:
    rows = [line for line in _text(PACK / "README.md").splitlines() if line.startswith("| ")]
    cells = [cell for row in rows for cell in row.split("`")[1::2]]
    names = {path.stem for path in (PACK / "workflows").glob("*.json")}
    assert names <= set(cells), f"in no table of README.md: {sorted(names - set(cells))}"
