"""Sections of demo/RESULTS.md: found by name, replaced whole, and what else is there is kept."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from measure import evaluation, results

TEXT = """# Results

## Edits

<!-- results: edits -->
old | table
<!-- end of results: edits -->

What it means.

<!-- results: edits injection -->
other
<!-- end of results: edits injection -->
"""


def test_only_the_section_of_that_name_changes() -> None:
    new = results.with_section(TEXT, "edits", "new\n")
    assert new == TEXT.replace("old | table", "new")
    assert results.with_section(new, "edits", "new\n") == new


def test_what_is_written_may_look_like_a_pattern() -> None:
    assert r"\1 \g<0> $1" in results.with_section(TEXT, "edits", r"\1 \g<0> $1")


def test_a_new_section_comes_last() -> None:
    new = results.with_section(TEXT, "maps", "table")
    assert new == TEXT + "\n<!-- results: maps -->\ntable\n<!-- end of results: maps -->\n"
    assert results.with_section("", "maps", "a").startswith("<!-- results: maps -->\na\n")


@pytest.mark.parametrize(
    "damaged",
    [
        TEXT.replace("<!-- end of results: edits -->", ""),
        TEXT.replace("<!-- results: edits -->", ""),
        TEXT + TEXT,
        TEXT.replace("<!-- results: edits -->", "X").replace(
            "<!-- end of results: edits -->", "<!-- results: edits -->"
        )
        + "<!-- results: edits -->",
        "<!-- end of results: edits --><!-- results: edits -->",
    ],
)
def test_damaged_marks_are_said_and_nothing_is_written(damaged: str, tmp_path: Path) -> None:
    file = tmp_path / "RESULTS.md"
    file.write_text(damaged, "utf-8")
    with pytest.raises(results.ResultsError, match="'edits' has"):
        results.write("edits", "python x", "state", "table", file)
    assert file.read_text("utf-8") == damaged


def test_the_old_text_stays_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "RESULTS.md"
    file.write_text(TEXT, "utf-8")

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        results.write("edits", "python x", "state", "table", file)
    assert file.read_text("utf-8") == TEXT
    assert os.listdir(tmp_path) == ["RESULTS.md"]


def test_the_command_without_where_its_results_go() -> None:
    arguments = ["--edits", "--write", "--steps", "20", "--output", "a folder", "--tasks", "replace", "--output=x"]
    told = results.command_of("demo/evaluate.py", arguments)
    assert told == "python demo/evaluate.py --edits --steps 20 --tasks replace"


def test_the_state_names_weights_and_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "model"
    model.write_bytes(b"abc")
    # The digest of "abc" is FIPS 180's own example.
    assert re.fullmatch(
        r"model `ba7816bf8f01`, commit (`[0-9a-f]{7,}` of \d{4}-\d\d-\d\d( with changes)?|unknown)",
        results.state(model),
    )
    monkeypatch.setattr(results, "PACK", tmp_path)  # no repository
    assert results.state(None) == "random weights, commit unknown"


def test_the_evaluation_writes_its_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "RESULTS.md"
    monkeypatch.setattr(results.write, "__defaults__", (file,))
    arguments = ["--edits", "--steps", "2", "--count", "2", "--methods", "autoencoder", "--tasks", "retain", "remove"]
    assert evaluation.main([*arguments, "--output", str(tmp_path)]) == 0
    assert not file.exists()
    assert evaluation.main([*arguments, "--output", str(tmp_path), "--write"]) == 0
    begin, end = results.section_of(file.read_text("utf-8"), "edits") or (0, 0)
    section = file.read_text("utf-8")[begin:end]
    assert f"`python demo/evaluate.py {' '.join(arguments)}`, model `" in section
    assert [line.split()[1] for line in section.splitlines() if line.startswith("| ")].count("autoencoder") == 2
