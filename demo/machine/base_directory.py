"""A base directory for ComfyUI that has this pack and no other. Only the standard library is used."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from machine.host_source import PACK, PreparationError

COPY_OF = ".copy-of"


def _link_folder(target: Path, link: Path) -> None:
    """Link `link` to the folder `target`: a symbolic link, on Windows a junction, else a copy."""
    try:
        if sys.platform == "win32":
            import _winapi

            _winapi.CreateJunction(str(target), str(link))
        else:
            link.symlink_to(target, target_is_directory=True)
    except OSError:
        _copy_folder(target, link)


def _copy_folder(target: Path, copy: Path) -> None:
    """A copy that says what it is a copy of; begun elsewhere, so that a cut one is never taken for whole."""
    part = copy.parent.parent / f"{copy.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(target, part, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    (part / COPY_OF).write_text(str(target.resolve()), "utf-8")
    shutil.rmtree(copy, ignore_errors=True)
    part.rename(copy)


def _is_copy(folder: Path, target: Path) -> bool:
    try:
        return (folder / COPY_OF).read_text("utf-8") == str(target.resolve())
    except OSError:
        return False


def base_directory(root: Path, pack: Path = PACK) -> Path:
    """Make `root` a ComfyUI base directory (main.py --base-directory) that has this pack and no other.

    The user's own ComfyUI folders stay untouched by what runs with it. Returns `root`, made absolute.
    """
    root = root.absolute()
    for name in ("custom_nodes", "input", "output", "temp", "user", "models/checkpoints"):
        (root / name).mkdir(parents=True, exist_ok=True)
    link = root / "custom_nodes" / "attention-edit"
    if not os.path.lexists(link):
        _link_folder(pack, link)
    elif _is_copy(link, pack):  # it may be older than the pack
        _copy_folder(pack, link)
    elif link.resolve() != pack.resolve():
        raise PreparationError(
            f"{link} is there already and is not this pack ({pack}); remove it or name another folder."
        )
    return root
