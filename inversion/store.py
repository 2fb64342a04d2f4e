"""Inversions on disk: one safetensors file each, in ComfyUI's output folder under `inversions`."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import folder_paths

from .file_format import FORMAT, VERSION, read, write
from .files import cure, part_of, remove, sweep
from .record import Inversion

__all__ = ["FORMAT", "SUFFIX", "VERSION", "directory", "load", "names", "path_of", "read", "save", "write"]

log = logging.getLogger(__name__)

SUFFIX = ".safetensors"
_NAMES_SHOWN = 20


def directory() -> Path:
    """Where inversions lie."""
    return Path(folder_paths.get_output_directory()) / "inversions"


def names() -> list[str]:
    """Saved inversions, as paths below `directory`; none if it cannot be read."""
    root = directory()
    try:
        return sorted(p.relative_to(root).as_posix() for p in root.rglob(f"*{SUFFIX}") if p.is_file())
    except OSError as error:
        log.warning("Attention Edit: %s: the saved inversions in %s cannot be listed (%s).", cure(error), root, error)
        return []


def path_of(name: str) -> Path:
    """The file of a saved inversion.

    Raises:
        ValueError: the name leads out of the folder or is none that a file can have, or there is no such file.
    """
    path = _within(name)
    try:
        found = path.is_file()
    except OSError as error:
        raise ValueError(f"{cure(error)}: no inversion can be loaded by the name {_short(name)} ({error}).") from error
    if not found:
        there = names()
        listed = ", ".join(there[:_NAMES_SHOWN]) + (" ..." if len(there) > _NAMES_SHOWN else "")
        raise ValueError(
            f"Choose another file: there is no inversion {_short(name)} in {directory()}; it holds: "
            f"{listed or 'nothing'}."
        )
    return path


def _within(name: str) -> Path:
    """A path below `directory`.

    Raises:
        ValueError: the name leads out of the folder, or is none that a file can have.
    """
    try:
        root = directory().resolve()
        path = (root / name).resolve()
    except ValueError as error:  # a NUL
        raise ValueError(f"Use a plain name: {_short(name)} is no name of a file ({error}).") from error
    except (OSError, RuntimeError) as error:  # before Python 3.13 a link to itself is a RuntimeError
        told = cure(error) if isinstance(error, OSError) else "Remove the link that leads to itself"
        raise ValueError(f"{told}: {_short(name)} is no name of a file ({error}).") from error
    if path == root:
        raise ValueError(f"Give the file a name: {_short(name)} is the folder {root} itself.")
    if root not in path.parents:
        raise ValueError(f"Use a plain name: {_short(name)} leads out of {root}, where all inversions lie.")
    return path


def _short(name: str) -> str:
    return repr(name if len(name) <= 100 else f"{name[:100]}...")


def save(inversion: Inversion, prefix: str) -> Path:
    """Save under the next free number, whole or not at all; files that exist are never written again.

    Args:
        prefix: file name, may hold folders; a five-digit number is put behind it.

    Raises:
        ValueError: the prefix is no name of a file below the folder, the source prompt holds what a file cannot
            (ControlNet, hooks), or the folder cannot be written.
    """
    stem = _within(prefix)
    part = part_of(stem)
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        sweep(directory().rglob("*"))
        write(inversion, part)
        number = 1
        while True:
            path = stem.with_name(f"{stem.name}_{number:05d}{SUFFIX}")
            try:
                _place(part, path)
                return path
            except FileExistsError:
                number += 1
    except OSError as error:
        raise ValueError(
            f"{cure(error)}: the inversion could not be saved as {_short(prefix)} in {stem.parent} ({error})."
        ) from error
    finally:
        remove(part)


def _place(part: Path, path: Path) -> None:
    """Give a file its name, FileExistsError if that is taken; a plain rename would write over it."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: take the name first
        path.open("x").close()
        try:
            part.replace(path)
        except OSError:
            remove(path)
            raise


def load(name: str) -> Inversion:
    """Load a saved inversion.

    Raises:
        ValueError: no such file, a foreign or broken one, or one of a later version.
    """
    return read(path_of(name), name)
