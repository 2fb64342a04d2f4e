"""Measure the demo model and the ways to edit on it: `python demo/evaluate.py [--model-bar] [--edits]`.

Without either option both are done. The results are printed as Markdown tables and written, with pictures, to
a folder (build/evaluation unless told otherwise). Uses a GPU when there is one.
"""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Prepare the environment and the host, then measure."""
    if "ATTENTION_EDIT_HOST" not in os.environ:
        import environment

        return environment.run_in_environment(__file__, sys.argv[1:])
    arguments = sys.argv[1:]
    sys.path.insert(1, os.environ["ATTENTION_EDIT_HOST"])
    import torch

    # The host reads the command line when it is imported; it must see its own options only.
    sys.argv[1:] = ["--use-pytorch-cross-attention", *([] if torch.cuda.is_available() else ["--cpu"])]
    import comfy.options

    comfy.options.enable_args_parsing()
    import evaluation

    return evaluation.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
