"""The pack on a GPU that there is not: check_*.py of this folder, in a process whose host runs on that device.

The device has to be PyTorch's before the host is imported, which this process has done. One file by hand:
`ATTENTION_EDIT_DEVICE=simulated python tests --only-pytest tests/simulated_gpu/check_counts.py`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
LEFT_OUT = (
    "There is no C++ compiler g++, which builds the simulated GPU: install Debian's package g++, or name another in "
    "the variable CXX."
)
MISSING = shutil.which(os.environ.get("CXX", "g++")) is None or sys.platform != "linux"

pytestmark = [pytest.mark.simulated_gpu, pytest.mark.skipif(MISSING and "CI" not in os.environ, reason=LEFT_OUT)]


def test_on_the_simulated_gpu() -> None:
    """One process for all, since they look at the same runs."""
    assert not MISSING, LEFT_OUT
    variables = {**os.environ, "ATTENTION_EDIT_DEVICE": "simulated"}
    files = sorted(HERE.glob("check_*.py"))
    command = [sys.executable, "-m", "pytest", "-c", HERE.parent / "pytest.ini", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-12000:]}\n{done.stderr[-4000:]}"
