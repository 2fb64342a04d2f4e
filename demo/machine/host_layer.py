"""Older and newer hosts than the pinned one, for tests: their own requirements on top of the private environment's.

Only the standard library is used, because this runs before the environments exist.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

from machine.cache_folder import cache_folder, locked
from machine.environment import BASE_GROUP, Environment, prepare, read_pins, venv_python
from machine.host_source import HOSTS, PINNED, PinnedHost, PreparationError, Runner, fetch_pinned, run_step

WHOLE = "complete"
FRONT_END = "comfyui-frontend-package"


def known_host(version: str) -> PinnedHost:
    """The host of a version, or of the words "oldest" and "newest".

    Raises:
        PreparationError: there is none.
    """
    known = list(HOSTS)
    name = {"oldest": known[0], "newest": known[-1]}.get(version, version)
    if name not in HOSTS:
        raise PreparationError(f"Take one of the hosts {', '.join(known)}, oldest or newest; {version!r} is none.")
    return HOSTS[name]


def _make_layer(folder: Path, base: Path, run: Runner) -> None:
    """A virtual environment that sees the packages of the environment of `base`, behind its own."""
    shutil.rmtree(folder, ignore_errors=True)
    run([str(base), "-m", "venv", "--without-pip", str(folder)], f"making the environment {folder}")
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    below, own = (
        subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
        for python in (base, venv_python(folder))
    )
    # addsitedir, and not the bare path, since that environment may stand on another one by a file of this kind.
    (Path(own) / "below.pth").write_text(f"import site; site.addsitedir({below!r})\n", "utf-8")


def prepare_host(version: str, run: Runner = run_step) -> Environment:
    """A host of HOSTS, unpacked, and a Python that has what its requirements.txt asks and the `test` group.

    Torch and the test programs are the private environment's; what the host asks in another version is installed
    into a small environment above it.

    Args:
        version: a version of HOSTS, "oldest" or "newest".

    Raises:
        PreparationError: there is no such host, or a step failed; the next call repairs it.
    """
    pinned, base, cache = known_host(version), prepare(["test"]), cache_folder() / "hosts"
    with locked(cache):
        host = fetch_pinned(cache_folder() if pinned is PINNED else cache, base.python, run, pinned)
        if host == base.host:
            return base
        requirements = host / "requirements.txt"
        torch = read_pins()[BASE_GROUP]
        digest = hashlib.sha256(repr([str(base.python), torch, requirements.read_text("utf-8")]).encode()).hexdigest()
        folder = cache / f"env-{pinned.comfyui}-{digest[:12]}"
        if not (folder / WHOLE).exists():
            _make_layer(folder, base.python, run)
            pip = [str(venv_python(folder)), "-m", "pip", "install", "--disable-pip-version-check"]
            run(
                [*pip, "-r", str(requirements), *torch],
                f"installing the requirements of ComfyUI {pinned.comfyui}",
            )
            (folder / WHOLE).touch()
    return Environment(venv_python(folder), host, f"ComfyUI {pinned.comfyui}")


def fetch_front_end(version: str, python: Path, run: Runner = run_step) -> Path:
    """The folder of a released front end, which the host takes with --front-end-root.

    Raises:
        PreparationError: it could not be downloaded.
    """
    cache = cache_folder() / "hosts"
    with locked(cache):
        folder = cache / f"front-end-{version}"
        if not (folder / WHOLE).exists():
            shutil.rmtree(folder, ignore_errors=True)
            options = ["--no-deps", "--disable-pip-version-check", "--target", str(folder)]
            requirement = f"{FRONT_END}=={version}"
            run([str(python), "-m", "pip", "install", *options, requirement], f"downloading {requirement}")
            (folder / WHOLE).touch()
    return folder / "comfyui_frontend_package" / "static"
