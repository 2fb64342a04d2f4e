"""The private environment of `python demo` and `python tests`, in the user's cache folder.

    environment = prepare(["test"])
    subprocess.run([environment.python, "-m", "pytest"])

Nothing is installed into the interpreter that runs this, nor into the user's ComfyUI. Where that interpreter
has ComfyUI's requirements already, its packages are used as they are and the private environment adds only
the asked extras. Only the standard library is used, because this runs before the environment exists.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from machine.cache_folder import cache_folder, locked
from machine.host_source import PACK, PINNED, HostChoice, PreparationError, Runner, choose_host, fetch_pinned, run_step

STAMP = "complete.json"
BASE_GROUP = "host"
# An interpreter that has all of these can run ComfyUI; the lines of requirements.txt are not looked up one by
# one, because names of packages and of modules differ.
HOST_MODULES = (
    *(
        "torch",
        "torchvision",
        "torchaudio",
        "torchsde",
        "numpy",
        "PIL",
        "yaml",
        "aiohttp",
        "safetensors",
        "einops",
    ),
    *("transformers", "sentencepiece", "scipy", "psutil", "sqlalchemy", "alembic", "av", "comfy_kitchen"),
    *("comfyui_frontend_package", "comfyui_workflow_templates"),
)


@dataclass(frozen=True)
class Environment:
    """A Python that can run ComfyUI, and the ComfyUI to run. `source` says where the latter came from."""

    python: Path
    host: Path
    source: str

    def variables(self) -> dict[str, str]:
        """Environment variables for what runs in it, with ComfyUI's folder in ATTENTION_EDIT_HOST.

        Packages that PYTHONPATH names for another Python do not belong into a private environment.
        """
        made = {**os.environ, "ATTENTION_EDIT_HOST": str(self.host)}
        if self.python != Path(sys.executable):
            made.pop("PYTHONPATH", None)
        return made


def read_pins(pack: Path = PACK) -> dict[str, list[str]]:
    """The optional-dependencies groups of pyproject.toml."""
    if sys.version_info < (3, 11):
        raise PreparationError(
            f"This is Python {sys.version.split()[0]}; the demo and the tests need 3.11 or newer. "
            "(The nodes themselves run on 3.10.)"
        )
    import tomllib

    with (pack / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]["optional-dependencies"]


def has_host_modules() -> bool:
    """True when the running interpreter can import what ComfyUI requires."""
    return all(importlib.util.find_spec(name) is not None for name in HOST_MODULES)


def venv_python(folder: Path) -> Path:
    """The interpreter of the virtual environment in `folder`."""
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _read_stamp(folder: Path) -> dict[str, str]:
    """Which groups are installed, with the hash of their pins; empty when the environment is not whole."""
    try:
        stamp = json.loads((folder / STAMP).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    whole = isinstance(stamp, dict) and BASE_GROUP in stamp and venv_python(folder).exists()
    return stamp if whole else {}


def _write_stamp(folder: Path, stamp: Mapping[str, str]) -> None:
    temporary = folder / (STAMP + ".new")
    temporary.write_text(json.dumps(stamp), "utf-8")
    os.replace(temporary, folder / STAMP)


def _make_venv(folder: Path, share_packages: bool, run: Runner) -> None:
    """A fresh virtual environment; with `share_packages` it also sees the running interpreter's packages."""
    if folder.exists():
        print(f"[attention-edit] removing the unfinished environment {folder}", flush=True)
        shutil.rmtree(folder)
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise PreparationError(
            f"{sys.executable} has no venv or no ensurepip module (Debian: install python3-venv; Windows "
            "portable: it has none). Run this with a full Python 3.11 or newer."
        )
    options = ["--system-site-packages"] if share_packages else []
    run([sys.executable, "-m", "venv", *options, str(folder)], f"making the environment {folder}")
    if not share_packages:
        return
    # A venv made from within a venv sees the base interpreter's packages only, so the outer venv's are named
    # here. Lines of a .pth file come after the environment's own packages, which therefore win.
    outer = [*site.getsitepackages(), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    if site.ENABLE_USER_SITE:
        outer.append(site.getusersitepackages())
    inner = folder / "Lib" if sys.platform == "win32" else next((folder / "lib").glob("python*"))
    lines = "\n".join(path for path in dict.fromkeys(outer) if os.path.isdir(path))
    (inner / "site-packages" / "shared.pth").write_text(lines + "\n", "utf-8")


def _install_groups(
    folder: Path,
    stamp: dict[str, str],
    pins: Mapping[str, list[str]],
    extras: Sequence[str],
    run: Runner,
    shared: bool = False,
) -> None:
    """Install the groups that are missing or whose pins changed; each is stamped when it is done."""
    for group in extras:
        wanted = _digest(pins[group])
        if stamp.get(group) == wanted:
            continue
        stamp.pop(group, None)
        _write_stamp(folder, stamp)  # a failure half-way must not leave the group marked as installed
        pip = [str(venv_python(folder)), "-m", "pip", "install", "--disable-pip-version-check"]
        run([*pip, *pins[group]], f"installing the {group} packages: {' '.join(pins[group])}")
        if shared:  # pip left out what the shared packages have, but these tools must be the environment's own
            run([*pip, "--ignore-installed", "--no-deps", *pins[group]], f"completing the {group} packages")
        stamp[group] = wanted
        _write_stamp(folder, stamp)


@contextmanager
def _whole_or_none(folder: Path) -> Iterator[None]:
    """Remove an environment that was not finished, however the making of it ended."""
    try:
        yield
    finally:
        if not _read_stamp(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _prepare_own(
    choice: HostChoice, cache: Path, pins: Mapping[str, list[str]], extras: Sequence[str], run: Runner
) -> Environment:
    """An environment that has everything itself: ComfyUI's requirements, the torch pins and the extras."""
    requirements = PINNED.sha256 if choice.path is None else (choice.path / "requirements.txt").read_text("utf-8")
    base = _digest(requirements, pins[BASE_GROUP], sys.version_info[:2], sys.platform)
    folder = cache / f"env-{base}"
    stamp, python = _read_stamp(folder), venv_python(folder)
    with _whole_or_none(folder):
        if not stamp:
            _make_venv(folder, False, run)
        host = choice.path or fetch_pinned(cache, python, run)
        if not stamp:
            pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
            run(
                [*pip, "-r", str(host / "requirements.txt"), *pins[BASE_GROUP]],
                f"installing ComfyUI's requirements and {' '.join(pins[BASE_GROUP])} (several GB, once)",
            )
            stamp = {BASE_GROUP: base}
            _write_stamp(folder, stamp)
    _install_groups(folder, stamp, pins, extras, run)
    return Environment(python, host, choice.source)


def _prepare_shared(
    host: Path, source: str, cache: Path, pins: Mapping[str, list[str]], extras: Sequence[str], run: Runner
) -> Environment:
    """An environment on top of the running interpreter's packages, with nothing but the extras in it."""
    source += f", with the packages of {sys.executable}"
    if not extras:
        return Environment(Path(sys.executable), host, source)
    base = _digest("shared", sys.prefix, sys.version_info[:2], sys.platform)
    folder = cache / f"env-{base}"
    stamp = _read_stamp(folder)
    if not stamp:
        with _whole_or_none(folder):
            _make_venv(folder, True, run)
            stamp = {BASE_GROUP: base}
            _write_stamp(folder, stamp)
    _install_groups(folder, stamp, pins, extras, run, shared=True)
    return Environment(venv_python(folder), host, source)


def prepare(
    extras: Sequence[str] = (), *, pack: Path = PACK, cache: Path | None = None, run: Runner = run_step
) -> Environment:
    """Make the environment, or take the one of last time, with the named groups of pyproject.toml installed.

    The base (ComfyUI's requirements and torch) has a folder of its own for every set of pins; a group whose
    pins changed is installed again into it. A step that fails raises PreparationError and is not marked as
    done, so the next call repairs it. Processes that prepare at the same time wait for each other.
    """
    pins = read_pins(pack)
    unknown = [name for name in extras if name not in pins or name == BASE_GROUP]
    if unknown:
        known = sorted(set(pins) - {BASE_GROUP})
        raise PreparationError(f"No extra is named {', '.join(unknown)}; there are {', '.join(known)}.")
    choice = choose_host(pack)
    cache = cache or cache_folder()
    try:
        with locked(cache):
            if choice.path is not None and has_host_modules():
                made = _prepare_shared(choice.path, choice.source, cache, pins, extras, run)
            else:
                made = _prepare_own(choice, cache, pins, extras, run)
    except OSError as error:
        raise PreparationError(
            f"The private environment could not be written to {cache}: {error}. Free space there, or name another "
            "cache folder (XDG_CACHE_HOME; on Windows LOCALAPPDATA)."
        ) from error
    print(f"[attention-edit] {made.source}: {made.host}\n[attention-edit] Python: {made.python}", flush=True)
    return made


def run_in_environment(script: str | Path, arguments: Sequence[str] = (), extras: Sequence[str] = ()) -> int:
    """Prepare, then run a script in the environment; returns its exit code, 2 when it could not be prepared.

    The script finds ComfyUI's folder in the environment variable ATTENTION_EDIT_HOST.
    """
    try:
        made = prepare(extras)
    except PreparationError as error:
        print(f"[attention-edit] {error}", file=sys.stderr)
        return 2
    command = [str(made.python), str(script), *arguments]
    return subprocess.run(command, env=made.variables(), check=False).returncode
