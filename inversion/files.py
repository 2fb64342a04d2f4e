"""Writing files whole or not at all, what a killed writer leaves behind, and the system's errors in plain words."""

from __future__ import annotations

import errno
import logging
import re
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

log = logging.getLogger(__name__)

STALE = 3600.0
"""Seconds after which what a killed writer has left aside is removed."""
PART = ".part"
_LEFTOVER = re.compile(r"(.+\.\d+(\.[0-9a-f]{32})?|[0-9a-f]{32})\.part|\.tmp\w{6}")
"""Names that files have while they are written: ours, and those that safetensors makes."""
_OS_ERROR = re.compile(r"\(os error (\d+)\)")

_CURES = {
    (errno.ENAMETOOLONG,): "Use a shorter name",
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG): "Free space on the disk",
    (errno.EACCES, errno.EPERM, errno.EROFS): "Give ComfyUI the right to read and write this folder",
    (errno.ENOTDIR, errno.EEXIST, errno.EISDIR): "Rename the file or folder that lies where another is wanted",
    (errno.ELOOP,): "Remove the link that leads to itself",
}


def part_of(path: Path) -> Path:
    """Where a file is written aside, in the same folder: no other writer has this name, and it is short."""
    return path.with_name(f"{uuid.uuid4().hex}{PART}")


def is_leftover(path: Path) -> bool:
    """Whether a file is one that is being written, or was when its writer ended."""
    return _LEFTOVER.fullmatch(path.name) is not None


def sweep(paths: Iterable[Path]) -> None:
    """Remove leftovers that no living writer can still be writing; what cannot be removed stays."""
    for path in filter(is_leftover, paths):
        try:
            if path.is_file() and time.time() - path.stat().st_mtime > STALE:
                remove(path)
        except OSError:  # gone meanwhile
            continue


def remove(path: Path) -> bool:
    """Remove a file if the system lets us; whether it is gone."""
    try:
        path.unlink(missing_ok=True)
        return True
    except OSError as error:  # Windows keeps files that another process reads
        log.info("Attention Edit: %s stays for now: %s", path.name, error)
        return False


def cure(error: Exception) -> str:
    """What to do about an error of the system or of safetensors, as the beginning of a sentence."""
    number = getattr(error, "errno", None)
    told = _OS_ERROR.search(str(error))
    if number is None and told is not None:
        number = int(told.group(1))
    return next((text for numbers, text in _CURES.items() if number in numbers), "Look at the folder")
