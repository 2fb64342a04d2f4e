"""What the registry and ComfyUI-Manager make of the pack, by their own programs.

They are installed once into an environment of their own, which sees this one's packages. Where that cannot be done
these tests are left out with pip's words; on CI they fail.
"""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
import sysconfig
import threading
import venv
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from machine.cache_folder import cache_folder, locked
from machine.environment import read_pins, venv_python
from machine.pack import PACK
from PIL import Image

pytestmark = pytest.mark.measure
PINS = read_pins()["registry"]
PUBLISHED = {
    *(
        "__init__.py",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "attention",
        "demo",
        "host",
        "inversion",
    ),
    *("js", "locales", "nodes", "subgraphs", "workflows"),
}
"""What stands at the top of what the registry publishes; other folders may join, tests and CI may not."""
INSTALL = """
import os, sys
host, url, path = sys.argv[1:]
os.environ["COMFYUI_PATH"] = host
sys.argv[1:] = []
sys.path.insert(0, host)
from comfyui_manager.glob import manager_core
done = manager_core.unified_manager.repo_install(url, path, instant_execution=True)
sys.exit(0 if done.result else done.msg)
"""


def run(*command: str | Path, folder: Path = PACK, **variables: str) -> str:
    """What a program prints, or a failed test."""
    there = {**os.environ, "DO_NOT_TRACK": "1", **variables}
    done = subprocess.run(
        command, cwd=folder, env=there, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return f"{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter that has comfy-cli and ComfyUI-Manager."""
    packages = sysconfig.get_paths()["purelib"]
    digest = hashlib.sha256(repr((PINS, sys.version, packages)).encode()).hexdigest()[:16]
    folder = cache_folder() / f"registry-{digest}"
    program, whole = venv_python(folder), folder / "whole"
    with locked(cache_folder()):
        if whole.is_file():
            return program
        venv.create(folder, with_pip=True, clear=True)
        own = run(program, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip()
        (Path(own) / "shared.pth").write_text(packages + "\n", "utf-8")
        command = [str(program), "-m", "pip", "install", "--quiet", *PINS]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            words = f"{' '.join(PINS)} cannot be installed: {done.stderr[-800:]}"
            pytest.fail(words) if "CI" in os.environ else pytest.skip(words)
        whole.touch()
    return program


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a git repository of the pack as it is committed, served from a folder."""
    folder = tmp_path_factory.mktemp("repository")
    bare = folder / "attention-edit.git"
    run("git", "clone", "--quiet", "--bare", PACK, bare)
    run("git", "update-server-info", folder=bare)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/attention-edit.git"
    server.shutdown()
    server.server_close()


def comfy(python: Path, *arguments: str, folder: Path = PACK) -> str:
    return run(python, "-m", "comfy_cli", "--skip-prompt", "--no-enable-telemetry", *arguments, folder=folder)


def test_the_registry_has_nothing_to_say(python: Path) -> None:
    said = comfy(python, "node", "validate")
    assert "passed" in said
    assert "Warning" not in said, said


def test_only_what_a_user_needs_is_published(python: Path, tmp_path: Path) -> None:
    run("git", "clone", "--quiet", PACK, tmp_path / "pack")
    comfy(python, "node", "pack", folder=tmp_path / "pack")
    with zipfile.ZipFile(tmp_path / "pack" / "node.zip") as packed:
        names = packed.namelist()
    assert {name.split("/")[0] for name in names} >= PUBLISHED
    assert not [name for name in names if name.startswith(("tests/", ".ci/", "demo/pictures/"))]
    assert "demo/bundle/model.safetensors" in names, "Demo Model reads it"


def test_pictures_are_as_the_registry_asks() -> None:
    """An icon of at most 800x400, a banner of 21:9; a repository's raw file is where both are read."""
    pictures = PACK / "demo" / "pictures"
    settings = (PACK / "pyproject.toml").read_text("utf-8")
    for name in ("icon.png", "banner.png"):
        assert f"/main/demo/pictures/{name}" in settings
    with Image.open(pictures / "icon.png") as icon, Image.open(pictures / "banner.png") as banner:
        assert icon.width <= 800 and icon.height <= 400
        assert banner.width * 9 == banner.height * 21


def test_comfyui_manager_installs_it(python: Path, repository: str, host: Path, tmp_path: Path) -> None:
    """From a git address, as in Manager's "Install via Git URL"; the host then finds a pack that it can load."""
    run(python, "-c", INSTALL, str(host), repository, str(tmp_path / "attention-edit"), folder=tmp_path)
    loaded = "from machine.pack import import_pack, pack_module\nimport_pack()\nprint(pack_module('nodes').__file__)"
    paths = os.pathsep.join([str(host), str(tmp_path / "attention-edit" / "demo")])
    code = f"import sys; sys.argv[1:] = ['--cpu']\nimport comfy.options; comfy.options.enable_args_parsing()\n{loaded}"
    assert str(tmp_path / "attention-edit") in run(sys.executable, "-c", code, folder=tmp_path, PYTHONPATH=paths)
