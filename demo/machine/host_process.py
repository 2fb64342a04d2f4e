"""Runs a script of demo/ in the private environment, with the host importable and set up."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path


def run(script: str, module: str) -> int:
    """Prepare the environment if that is to be done, then call `main(arguments)` of a module of demo/.

    Args:
        script: the file that was started, to start it again in the environment.
        module: where the work is done; imported once the host is.
    """
    if "ATTENTION_EDIT_HOST" not in os.environ:
        from machine import environment

        return environment.run_in_environment(script, sys.argv[1:])
    arguments = sys.argv[1:]
    sys.path.insert(1, os.environ["ATTENTION_EDIT_HOST"])
    sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
    import torch

    # The host reads the command line when it is imported; it must see its own options only.
    sys.argv[1:] = ["--use-pytorch-cross-attention", *([] if torch.cuda.is_available() else ["--cpu"])]
    import comfy.options

    comfy.options.enable_args_parsing()
    return importlib.import_module(module).main(arguments)
