"""`python demo`: the shipped workflows on a real ComfyUI, as pictures and as scores. See --help.

Needs nothing but Python 3.11 or newer: it prepares a private environment and goes on inside it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import options
from environment import prepare
from host_source import PreparationError


def go_on_inside(command: list[str], host: Path) -> int:
    """Run a command that knows the host, hand Ctrl-C and the like on to it, and wait until it has cleaned up."""
    variables = {**os.environ, "ATTENTION_EDIT_HOST": str(host)}
    if command[0] != sys.executable:  # packages of another Python do not belong into the private environment
        variables.pop("PYTHONPATH", None)
    process = subprocess.Popen(command, env=variables)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: process.terminate())
    return process.wait()


def main(arguments: list[str]) -> int:
    """Check the command line, prepare the environment, and go on inside it."""
    options.parse(arguments)
    try:
        made = prepare()
    except PreparationError as error:
        print(f"[attention-edit] {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return go_on_inside([str(made.python), str(Path(__file__).with_name("showcase.py")), *arguments], made.host)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
