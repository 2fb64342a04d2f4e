"""The pack's folder in the user's cache, and its lock. Standard library only."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path


def cache_folder(variables: Mapping[str, str] | None = None, platform: str = sys.platform) -> Path:
    """The pack's folder in the user's cache (XDG, ~/Library/Caches or %LOCALAPPDATA%)."""
    variables = os.environ if variables is None else variables
    if platform == "win32":
        base = variables.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = variables.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "attention-edit"


HELD = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK}
"""What the system says of a lock that another process holds."""


@contextmanager
def locked(cache: Path) -> Iterator[None]:
    """Hold the cache folder's lock. The system frees it when the process ends, however it ends."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("a+b") as file:
        waiting = False
        while not _try_lock(file.fileno()):
            if not waiting:
                print(f"[attention-edit] another process prepares {cache}; waiting for it", flush=True)
            waiting = True
            time.sleep(0.5)
        try:
            yield
        finally:
            _unlock(file.fileno())


def _try_lock(handle: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(handle, 0, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD:
            return False
        # Some network file systems know no locks; two that prepare at once there are better than none.
        print(f"[attention-edit] no lock in the cache folder ({error}); do not start this twice at once", flush=True)
    return True


def _unlock(handle: int) -> None:
    with suppress(OSError):  # where there was no lock to take, there is none to give back
        _release(handle)


def _release(handle: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(handle, 0, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_UN)
