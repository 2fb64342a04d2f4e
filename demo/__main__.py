"""`python demo`: the shipped workflows on a real ComfyUI, as pictures and as scores. See --help.

Needs nothing but Python 3.11 or newer: it prepares a private environment and goes on inside it.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from machine.environment import Environment, prepare
from machine.host_source import PreparationError
from show import options


def go_on_inside(made: Environment, command: list[str]) -> int:
    """Run a command in the environment, hand Ctrl-C and the like on to it, and wait until it has cleaned up."""
    process = subprocess.Popen([str(made.python), *command], env=made.variables())
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
    return go_on_inside(made, [str(Path(__file__).with_name("inside.py")), "showcase", *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
