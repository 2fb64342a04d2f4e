"""The pack's source read as a house: its files, who imports whom, and what each file defines."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]
ROOMS = ("host", "inversion", "attention", "nodes")
"""The folders that a user's ComfyUI imports."""
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def files(*tops: str) -> list[Path]:
    """The Python files of the pack's folders, in order."""
    return sorted(path for top in tops for path in (PACK / top).rglob("*.py"))


def told(path: Path) -> str:
    """A file as the tests name it: from the pack's folder, with slashes."""
    return path.relative_to(PACK).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    """A file's syntax tree."""
    return ast.parse(path.read_text("utf-8"), str(path))


@dataclass(frozen=True)
class Import:
    """One imported module, with all names from the pack's folder or, of others, as written.

    Attributes:
        file: that imports. module: dotted, such as "attention.engine.call" or "comfy.samplers".
        own: it is of the pack or of demo/. inside: it stands in a function.
    """

    file: Path
    module: str
    own: bool
    inside: bool


def imports(path: Path) -> Iterator[Import]:
    """Everything that a file imports, wherever it stands."""
    inner = {id(n) for f in ast.walk(tree(path)) if isinstance(f, FUNCTIONS) for n in ast.walk(f)}
    for node in ast.walk(tree(path)):
        inside = id(node) in inner
        if isinstance(node, ast.Import):
            yield from (_absolute(path, alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (_absolute(path, f"{node.module}.{alias.name}", inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            folder = path.parents[node.level - 1].relative_to(PACK).parts
            base = ".".join([*folder, *([node.module] if node.module else [])])
            yield from (
                Import(path, _module(f"{base}.{alias.name}".lstrip(".")) or base, True, inside) for alias in node.names
            )


def _absolute(path: Path, name: str, inside: bool) -> Import:
    """demo/ is on the path of its own commands, whose modules import each other by their names below it."""
    found = _module(f"demo.{name}") if told(path).startswith("demo/") else None
    return Import(path, found or name, found is not None, inside)


def _module(name: str) -> str | None:
    """The longest part of a dotted name that is a file or a package of the pack."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        place = PACK.joinpath(*parts[:count])
        if place.with_suffix(".py").is_file() or (place / "__init__.py").is_file():
            return ".".join(parts[:count])
    return None


def module_of(path: Path) -> str:
    """The dotted name of a file, from the pack's folder."""
    parts = path.relative_to(PACK).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def circles(paths: Iterable[Path]) -> list[list[str]]:
    """Groups of modules that import each other, by way of others too; each sorted."""
    arrows = {module_of(path): {found.module for found in imports(path) if found.own} for path in paths}
    reached = {module: _reached(module, arrows) for module in arrows}
    groups = {
        tuple(sorted(other for other in reached[module] if module in reached.get(other, ())))
        for module in arrows
        if module in reached[module]
    }
    return [list(group) for group in sorted(groups)]


def _reached(start: str, arrows: Mapping[str, set[str]]) -> set[str]:
    """Modules at the end of any way of at least one arrow."""
    seen: set[str] = set()
    waiting = list(arrows[start])
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += arrows.get(module, ())
    return seen


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and lines, from `def` to the end and without the docstring, of every function of a file."""
    for node in ast.walk(tree(path)):
        if isinstance(node, FUNCTIONS):
            first = node.body[0]
            has_text = ast.get_docstring(node) is not None
            text = (first.end_lineno or 0) - first.lineno + 1 if has_text else 0
            yield node.name, (node.end_lineno or 0) - node.lineno + 1 - text


def public_names(path: Path) -> Iterator[str]:
    """Functions, classes and constants that a file defines at its top, but those that begin with _."""
    for node in tree(path).body:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            found = [node.name]
        elif isinstance(node, ast.Assign):
            found = [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found = [node.target.id]
        else:
            found = []
        yield from (name for name in found if not name.startswith("_"))


def texts_of(path: Path, keyword: str) -> list[str]:
    """The constant texts that a file passes as a keyword, such as node_id, alone or in a list."""
    passed = [node.value for node in ast.walk(tree(path)) if isinstance(node, ast.keyword) and node.arg == keyword]
    each = [part for value in passed for part in (value.elts if isinstance(value, ast.List) else [value])]
    return [part.value for part in each if isinstance(part, ast.Constant) and isinstance(part.value, str)]


def paper_name(path: Path) -> str:
    """What a method is called by: the first line of its file or folder, up to a colon or bracket."""
    text = ast.get_docstring(tree(path / "__init__.py" if path.is_dir() else path)) or ""
    return re.split(r"[:(]", text)[0].strip()


def in_brackets(title: str) -> str:
    """The method's name in a display name that begins with its task, "Change Pose (MasaCtrl)"; or the whole name."""
    found = re.search(r"\((.+)\)$", title)
    return found[1] if found else title
