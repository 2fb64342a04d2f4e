"""`python demo`: the shipped workflows on a real ComfyUI, as pictures and as scores. See --help.

Needs nothing but Python 3.11 or newer: it prepares a private environment and goes on inside it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import options
from environment import run_in_environment


def main(arguments: list[str]) -> int:
    """Check the command line, prepare the environment, and go on inside it."""
    options.parse(arguments)
    try:
        return run_in_environment(Path(__file__).with_name("showcase.py"), arguments)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
