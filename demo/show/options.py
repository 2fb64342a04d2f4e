"""The command line of `python demo`. Standard library only."""

from __future__ import annotations

import argparse
from pathlib import Path

WORKFLOWS = {
    "replace": "cpam-replace",
    "keep": "cpam-keep-object",
    "background": "cpam-background",
    "remove": "cpam-remove",
}
"""Which shipped workflow does an own picture's task."""

DESCRIPTION = """Shows the pack at work on a real ComfyUI: runs every shipped workflow and writes one sheet of
pictures per task, then scores the methods against the known truth. Everything that this needs goes into a private
environment in your cache folder; your ComfyUI stays as it is."""

EPILOGUE = """your own picture:
  python demo --image photo.png --mask mask.png --prompt "a blue square" --checkpoint model.safetensors
  The result is the whole photograph, of any size; what is not edited keeps its very pixels. The mask is white where
  the object is. Without --mask the transparent part of the image is the mask, which is what the mask editor of
  ComfyUI saves. The bundled model knows coloured shapes only, so give a checkpoint."""


def parser() -> argparse.ArgumentParser:
    """All options."""
    made = argparse.ArgumentParser(
        prog="python demo",
        description=DESCRIPTION,
        epilog=EPILOGUE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--output", type=Path, default=Path("attention-edit-demo"), help="each run makes a new folder in this one"
    )
    made.add_argument("--scenes", type=int, default=8, metavar="N", help="scenes per task for the scores (8)")
    made.add_argument("--no-scores", action="store_true", help="pictures only")
    made.add_argument("--serve", action="store_true", help="open the first workflow in ComfyUI and stay")
    made.add_argument(
        "--thumbnails", action="store_true", help="write the pictures of workflows/ and of the README anew"
    )
    made.add_argument(
        "--blueprints",
        action="store_true",
        help="write subgraphs/ and real checkpoints' workflows anew from workflows/",
    )
    made.add_argument("--locales", action="store_true", help="write locales/en anew from the nodes' own words")
    own = made.add_argument_group("your own picture")
    own.add_argument("--image", type=Path)
    own.add_argument("--mask", type=Path, help="white where the object is")
    own.add_argument("--prompt", help="what the masked place shall show")
    own.add_argument("--task", choices=list(WORKFLOWS), default="replace")
    own.add_argument("--checkpoint", help="an SD1.x, SD2.x or SDXL file: a path, or a name in your ComfyUI")
    own.add_argument("--size", type=int, help="pixels: the edit is drawn at the area of this square (the model's own)")
    own.add_argument("--steps", type=int, help="DDIM steps (as in the workflow; 50 with --checkpoint)")
    own.add_argument("--guidance", type=float, help="guidance scale (as in the workflow; 7.5 with --checkpoint)")
    return made


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse and check; a bad command line ends the program with a text that says what is missing."""
    made = parser()
    options = made.parse_args(arguments)
    if options.scenes < 1:
        made.error("--scenes must be at least 1; use --no-scores for none")
    if options.steps is not None and not 1 <= options.steps <= 1000:
        made.error("--steps must be from 1 to 1000")
    if options.size is not None and not 64 <= options.size <= 4096:
        made.error("--size must be from 64 to 4096")
    if options.image is None:
        for name in ("mask", "prompt", "checkpoint", "size", "steps", "guidance"):
            if getattr(options, name) is not None:
                made.error(f"--{name} goes with --image")
        return options
    if options.serve or options.thumbnails or options.blueprints or options.locales:
        made.error("--image does not go with --serve, --thumbnails, --blueprints or --locales")
    if options.prompt is None and options.task != "remove":
        made.error('--image needs --prompt, such as --prompt "a blue square" (only --task remove has none)')
    for name in ("image", "mask"):
        path = getattr(options, name)
        if path is not None and not path.is_file():
            made.error(f"--{name}: there is no file {path}")
    return options
