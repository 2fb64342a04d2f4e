"""Makes the pack and its host importable in tests, and gives them a server and a browser.

`from attention_edit.attention import ...` imports the pack as the host does: from its root __init__.py, under
a name of our choice, with the root never on sys.path (its nodes/ would hide ComfyUI's nodes.py). The modules
of demo/ and tests/help/ are imported by their own names; those folders come last on sys.path, so that the host's
names win.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from machine.comfy_server import ComfyServer
    from playwright.sync_api import Browser

PACK = Path(__file__).resolve().parents[1]
DEVICE = os.environ.get("ATTENTION_EDIT_DEVICE", "cpu")
ON_CPU = DEVICE == "cpu"
HOST_OPTIONS = {"cpu": ["--cpu"], "simulated": ["--directml", "0"]}
"""What ComfyUI is told of the device; of any other it finds out itself."""
CHROMIUM_FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


def _find_host() -> Path:
    given = os.environ.get("ATTENTION_EDIT_HOST", "")
    host = Path(given)
    if not given or not (host / "main.py").is_file():
        raise pytest.UsageError(
            f"ATTENTION_EDIT_HOST is {given!r}, expected a ComfyUI folder. Run `python tests`, which sets it."
        )
    return host


def _enter_host() -> None:
    host = _find_host()
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != PACK]
    sys.path.insert(0, str(host))
    sys.path.extend([str(PACK / "demo"), str(PACK / "tests" / "help")])
    # The host reads the command line at the first import of comfy.cli_args; it must see its own options only.
    if DEVICE == "simulated":
        sys.path.append(str(PACK / "tests" / "simulated_gpu" / "stand_in"))
    arguments, sys.argv = sys.argv, [sys.argv[0], *HOST_OPTIONS.get(DEVICE, [])]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args

    assert comfy.cli_args.args.cpu == ON_CPU
    sys.argv = arguments
    from machine.pack import import_pack

    import_pack()


_enter_host()


LONG = ("simulated_gpu", "fuzz", "workflows")
"""Folders whose files take minutes: two processes share the work best if these do not come last."""


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What uses the server or the browser, by whatever fixture, has their mark; what takes long comes first."""
    items.sort(key=lambda item: item.path.parent.name not in LONG)
    for item in items:
        for name in ("server", "browser"):
            if name in getattr(item, "fixturenames", ()):
                item.add_marker(name)


@pytest.fixture(scope="session")
def host() -> Path:
    """The folder of ComfyUI."""
    return _find_host()


@pytest.fixture(scope="session")
def server(host: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A real ComfyUI server that has this pack and no other, in folders of its own."""
    from machine.base_directory import base_directory
    from machine.comfy_server import ComfyServer

    base = base_directory(tmp_path_factory.mktemp("comfyui"))
    front_end = os.environ.get("ATTENTION_EDIT_FRONT_END", "")
    options = ["--front-end-root", front_end] if front_end else []
    with ComfyServer(Path(sys.executable), host, base, cpu=ON_CPU, extra_args=options) as running:
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium: $CHROMIUM, else /usr/bin/chromium."""
    from playwright.sync_api import sync_playwright

    program = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    if not Path(program).is_file():
        pytest.fail(f"There is no Chromium at {program}: install it, or set CHROMIUM to its path.", pytrace=False)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, headless=True, args=CHROMIUM_FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def model() -> Any:
    """A tiny SD1.x with random weights."""
    import tiny

    return tiny.tiny_model()


@pytest.fixture(scope="module")
def inversion(model: Any) -> Any:
    """A random image inverted with it in four steps."""
    import edits

    return edits.invert(model)
