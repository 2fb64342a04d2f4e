"""What fuzzing needs of the host: folders of its own, and no progress bars."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import comfy.utils
import folder_paths
import pytest


@pytest.fixture(scope="session", autouse=True)
def folders(tmp_path_factory: Any) -> Iterator[None]:
    """Output, temporary and user files of the nodes go to a folder of the tests."""
    root = tmp_path_factory.mktemp("host")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("output", "temp", "user"):
            (root / name).mkdir()
            patch.setattr(folder_paths, f"get_{name}_directory", lambda name=name: str(root / name))
        patch.setattr(comfy.utils, "PROGRESS_BAR_ENABLED", False)
        yield
