"""The pack's folder in the user's cache: where it is, and its lock."""

from __future__ import annotations

import errno
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from machine.cache_folder import cache_folder, locked


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/x"}, Path("/x/attention-edit")),
        ("linux", {}, Path.home() / ".cache/attention-edit"),
        ("darwin", {"XDG_CACHE_HOME": "/x"}, Path.home() / "Library/Caches/attention-edit"),
        ("win32", {"LOCALAPPDATA": "/local"}, Path("/local/attention-edit")),
    ],
)
def test_cache_folder(platform: str, variables: dict[str, str], expected: Path) -> None:
    assert cache_folder(variables, platform) == expected


def _hold(cache: Path, held: Callable[[], None], end: Callable[[], bool]) -> None:
    with locked(cache):
        held()
        end()


def test_lock_waits_and_dies_with_its_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    context = multiprocessing.get_context("fork")
    held, end = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, held.set, end.wait))
    holder.start()
    assert held.wait(20)
    killer = context.Process(target=_kill_later, args=(holder.pid,))
    start = time.monotonic()
    killer.start()
    with locked(tmp_path):
        waited = time.monotonic() - start
    killer.join()
    holder.join()
    assert waited >= 0.3
    assert "waiting for it" in capsys.readouterr().out


def _kill_later(pid: int) -> None:
    time.sleep(0.4)
    os.kill(pid, 9)


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with locked(tmp_path):
        assert "No locks available" in capsys.readouterr().out
