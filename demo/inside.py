"""What `python demo` starts inside the private environment: `showcase ARGUMENTS` or `scores SCENES FOLDER`."""

from __future__ import annotations

import sys

from machine import host_process

if __name__ == "__main__":
    part = sys.argv.pop(1)
    if part == "scores":
        sys.exit(host_process.run(__file__, "measure.scores"))
    from show import showcase

    sys.exit(showcase.main(sys.argv[1:]))
