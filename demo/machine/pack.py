"""Imports the pack outside ComfyUI's own loader, as `attention_edit`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

PACK = Path(__file__).resolve().parents[2]
NAME = "attention_edit"


def pack_module(name: str) -> Any:
    """A module of the pack, such as "attention.engine"."""
    import_pack()
    return importlib.import_module(f"{NAME}.{name}")


def import_pack() -> None:
    """Import the pack from its root __init__.py, as the host does with custom nodes.

    The root itself is never put on sys.path: its nodes/ would hide ComfyUI's nodes.py. The host has to be
    importable already.
    """
    if NAME in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(NAME, PACK / "__init__.py", submodule_search_locations=[str(PACK)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
