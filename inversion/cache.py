"""Inversions kept on disk between sessions: the same image, prompt, model and settings are not inverted twice.

Entries are named by their content, written aside and put in place in one move, so that several ComfyUIs may share
the folder and a crash leaves nothing half. The least recently used ones go when there are too many. Whatever is wrong
with the folder, a file or the name costs no more than the making: it is said on the node, and the entry is made anew.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths

from ..host.remarks import Kind, remark
from . import store
from .files import PART, STALE, is_leftover, part_of, remove, sweep
from .fingerprint import UnknownError, fingerprint
from .record import Inversion

__all__ = ["LIMIT", "PART", "STALE", "cached", "entries_folder"]

LIMIT = 2 << 30
"""Bytes that the folder takes at most, together with what is being written or was left."""


_UNKNOWN = "Switch disk_cache off, or take other nodes' patches off the model: this inversion is not kept on disk"


def entries_folder() -> Path:
    """Where entries lie: in ComfyUI's user folder, since the temporary one is emptied at every start."""
    return Path(folder_paths.get_user_directory()) / "attention-edit" / "inversions"


def cached(make: Callable[[], Inversion], model: Any, *values: Any) -> tuple[Inversion, bool]:
    """The inversion that a model makes of some values, from disk where it is there.

    Args:
        make: makes it; what it raises goes through.
        model: host MODEL. values: everything else that the result depends on.

    Returns:
        the inversion, and whether it was read from disk. Whatever is wrong with the folder is said on the node, and
        costs no more than the making.
    """
    path = _path(model, *values)
    if path is None:
        return make(), False
    found = _read(path)
    if found is not None:
        return found, True
    made = make()
    try:
        _write(made, path)
        _evict(path.parent)
    except Exception as error:  # what only saves work must never cost work
        remark(Kind.IGNORED, f"Free or repair {path.parent}: this inversion is not kept on disk: {error}")
    return made, False


def _path(model: Any, *values: Any) -> Path | None:
    """The entry's file; None if what the result depends on cannot be told."""
    try:
        return entries_folder() / f"{fingerprint(model, *values)}{store.SUFFIX}"
    except UnknownError as unknown:
        remark(Kind.IGNORED, f"{_UNKNOWN}: {unknown}.")
    except Exception as error:  # whatever other nodes' objects raise when they are looked at
        remark(Kind.IGNORED, f"{_UNKNOWN}: {type(error).__name__}: {error}")
    return None


def _read(path: Path) -> Inversion | None:
    """An entry, now the most recently used one; None if there is none that can be read."""
    try:
        if not path.is_file():
            return None
        with contextlib.suppress(OSError):  # another user's file
            os.utime(path)
        return store.read(path, path.name, path.stem)
    except Exception as error:
        if path.exists():  # another process may have removed it meanwhile
            remark(Kind.DOUBTFUL, f"Check the disk if this comes again: a broken inversion is made anew: {error}")
            remove(path)
        return None


def _write(inversion: Inversion, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    try:
        store.write(inversion, part, path.stem)
        if part.stat().st_size > LIMIT:
            raise ValueError(f"it takes more than the {LIMIT >> 20} MiB of the whole cache.")
        os.replace(part, path)
    finally:
        remove(part)


def _evict(folder: Path) -> None:
    """Remove what crashes have left, and the least recently used entries beyond the limit."""
    sweep(folder.iterdir())
    entries, total = [], 0
    for path in folder.iterdir():
        try:
            state = path.stat()
        except OSError:  # gone meanwhile, or a link to itself
            continue
        if path.suffix == store.SUFFIX and path.is_file():
            entries.append((state.st_mtime, state.st_size, path))
        if path.suffix == store.SUFFIX or is_leftover(path):
            total += state.st_size
    for _, size, path in sorted(entries, key=lambda entry: entry[0]):
        if total <= LIMIT:
            break
        total -= size if remove(path) else 0
