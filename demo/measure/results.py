"""demo/RESULTS.md: sections of measured tables that the commands write themselves (`--write`).

A section stands between two comments that name it. Writing it replaces what is between them, its command and the
state that was measured included; everything else in the file, headings and explanations, is kept as it is.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from machine.pack import PACK

FILE = PACK / "demo" / "RESULTS.md"
MEASURED = ("host", "inversion", "attention", "demo/bundle")
"""What a result is a result of: the pack's code without its nodes, the model and its scenes."""
UNTOLD = ("--write", "--output")
"""Options that do not change what is measured; each may have a value."""


class ResultsError(ValueError):
    """The file's marks are damaged."""


def section_of(text: str, name: str) -> tuple[int, int] | None:
    """Where a section's content begins and ends in a text, or None.

    Raises:
        ResultsError: a mark stands twice, alone or in the wrong order.
    """
    marks = [[found.start() for found in re.finditer(re.escape(mark), text)] for mark in _marks(name)]
    if not any(marks):
        return None
    begins, ends = marks
    if len(begins) != 1 or len(ends) != 1 or begins > ends:
        raise ResultsError(
            f"The section {name!r} has {len(begins)} marks {_marks(name)[0]!r} and {len(ends)} marks "
            f"{_marks(name)[1]!r}, expected one of each in this order: mend or remove them."
        )
    return begins[0] + len(_marks(name)[0]), ends[0]


def with_section(text: str, name: str, content: str) -> str:
    """The text with a section's content replaced; a section that is not there yet is added at the end."""
    begin, end = _marks(name)
    place = section_of(text, name)
    if place is None:
        before = text.rstrip("\n")
        return f"{before}{before and chr(10) * 2}{begin}\n{content.strip()}\n{end}\n"
    return f"{text[: place[0]]}\n{content.strip()}\n{text[place[1] :]}"


def write(name: str, command: str, state: str, tables: str, file: Path = FILE) -> None:
    """Put measured tables into their section of a file, which then has the old text or the new one, never a part.

    Args:
        name: of the section. command: as it was called. state: what was measured, from `state`.
    """
    text = file.read_text("utf-8") if file.exists() else "# Results\n"
    new = with_section(text, name, f"`{command}`, {state}\n\n{tables}")
    part = file.with_name(f"{file.name}.{os.getpid()}.new")
    try:
        part.write_text(new, "utf-8")
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def write_benchmark(part: str, arguments: Sequence[str], tables: str, model: Path | None = None) -> None:
    """Put what a part of `demo/benchmark.py` measured into its section, "benchmark" and the part's name.

    Args:
        model: the demo model's file, where it is the model that was measured.
    """
    write(f"benchmark {part}", command_of("demo/benchmark.py", [part, *arguments]), state(model), tables)


def command_of(script: str, arguments: Sequence[str]) -> str:
    """The command line that measures the same again, without where its results go."""
    told, value_follows = [], False
    for argument in arguments:
        name = argument.partition("=")[0]
        if name.startswith("-"):
            value_follows = name in UNTOLD and "=" not in argument and name != "--write"
        elif value_follows:
            value_follows = False
            continue
        if name not in UNTOLD:
            told.append(argument)
    return shlex.join(["python", script, *told])


def state(model: Path | None) -> str:
    """What was measured: the weights by their digest, and the commit that last changed the pack or the model.

    Args:
        model: the demo model's file; None where the weights are random.
    """
    weights = "random weights" if model is None else f"model `{_digest(model)}`"
    commit = _git("log", "-1", "--format=`%h` of %cs", "--", *MEASURED)
    if not commit:
        return f"{weights}, commit unknown"
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", *MEASURED)
    return f"{weights}, commit {commit}{' with changes' if changed else ''}"


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- results: {name} -->", f"<!-- end of results: {name} -->"


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def _git(*arguments: str) -> str:
    """What git says about the pack's folder; empty where there is no git or no repository."""
    try:
        done = subprocess.run(["git", "-C", str(PACK), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
