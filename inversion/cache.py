"""Inversions kept on disk between sessions: the same image, prompt, model and settings are not inverted twice.

Entries are named by their content, written aside and put in place in one move, so that several ComfyUIs may share
the folder and a crash leaves nothing half. The least recently used ones go when there are too many.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths

from . import store
from .fingerprint import UnknownError, fingerprint
from .record import Inversion

log = logging.getLogger(__name__)

LIMIT = 2 << 30
"""Bytes that entries take at most, together."""
STALE = 3600.0
"""Seconds after which what a crash has left aside is removed."""
PART = ".part"


def directory() -> Path:
    """Where entries lie: in ComfyUI's user folder, since the temporary one is emptied at every start."""
    return Path(folder_paths.get_user_directory()) / "attention-edit" / "inversions"


def cached(make: Callable[[], Inversion], model: Any, *values: Any) -> tuple[Inversion, bool]:
    """The inversion that a model makes of some values, from disk where it is there.

    Args:
        make: makes it; what it raises goes through.
        model: host MODEL. values: everything else that the result depends on.

    Returns:
        the inversion, and whether it was read from disk. Whatever is wrong with the folder is told in the log, and
        costs no more than the making.
    """
    try:
        path = directory() / f"{fingerprint(model, *values)}{store.SUFFIX}"
    except UnknownError as unknown:
        log.warning("Attention Edit: this inversion is not kept on disk: %s.", unknown)
        return make(), False
    found = _read(path)
    if found is not None:
        return found, True
    made = make()
    try:
        _write(made, path)
        _evict(path.parent)
    except (OSError, ValueError) as error:
        log.warning("Attention Edit: this inversion is not kept on disk: %s", error)
    return made, False


def _read(path: Path) -> Inversion | None:
    """An entry, now the most recently used one; None if there is none that can be read."""
    try:
        if not path.is_file():
            return None
        os.utime(path)
        return store.read(path, path.name)
    except FileNotFoundError:
        return None  # another process has removed it meanwhile
    except (OSError, ValueError) as error:
        log.warning("Attention Edit: a broken entry of the inversion cache is made anew: %s", error)
        _remove(path)
        return None


def _write(inversion: Inversion, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.stem}.{os.getpid()}.{uuid.uuid4().hex}{PART}")
    try:
        store.write(inversion, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _evict(folder: Path) -> None:
    """Remove the least recently used entries beyond the limit, and what crashes have left."""
    entries = []
    for path in folder.iterdir():
        try:
            state = path.stat()
        except FileNotFoundError:
            continue
        if path.suffix == store.SUFFIX:
            entries.append((state.st_mtime, state.st_size, path))
        elif path.suffix == PART and time.time() - state.st_mtime > STALE:
            _remove(path)
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries, key=lambda entry: entry[0]):
        if total <= LIMIT:
            break
        _remove(path)
        total -= size


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:  # Windows keeps files that another process reads
        log.info("Attention Edit: %s stays for now: %s", path.name, error)
