"""A user's own picture in a shipped workflow: checked, fitted to the model, and put in the place of the demo nodes."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError
from show.workflow_file import Prompt, find_node

HALF = 128
"""Where gray begins to count as white."""
HOW_TO_MASK = (
    "Give --mask with a picture of the same size that is white where the object is and black elsewhere; or open "
    "the image in ComfyUI's mask editor (right-click Load Image, Open in MaskEditor), paint over the object, save, "
    "and give that file, whose transparent part is the mask."
)


class PictureError(ValueError):
    """An own picture, mask or checkpoint cannot be used; the text says what to change."""


@dataclass(frozen=True)
class OwnPicture:
    """What replaces the demo nodes: pictures of equal size, and a checkpoint's name or None for the demo model."""

    image: Image.Image
    mask: Image.Image
    checkpoint: str | None


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as opened:
            return ImageOps.exif_transpose(opened.copy())
    except (UnidentifiedImageError, OSError) as error:
        raise PictureError(f"{path} is not a picture that can be read ({error}).") from error


def _mask_of(image: Image.Image, path: Path | None) -> Image.Image:
    """White where the object is: the mask file, else the transparent part of the image."""
    if path is not None:
        mask = _open(path).convert("RGB").convert("L")
        if abs(mask.width / mask.height - image.width / image.height) > 0.02:
            raise PictureError(
                f"The mask is {mask.width}x{mask.height} and the image {image.width}x{image.height}: they must have "
                "the same proportions."
            )
    elif "A" in image.getbands() or "transparency" in image.info:
        mask = ImageOps.invert(image.convert("RGBA").getchannel("A"))
    else:
        raise PictureError(f"There is no mask: the image has no transparency. {HOW_TO_MASK}")
    counts = mask.histogram()
    if not any(counts[HALF:]) or not any(counts[:HALF]):
        which = "everything" if any(counts[HALF:]) else "nothing"
        raise PictureError(f"The mask selects {which}. {HOW_TO_MASK}")
    return mask


def prepare(image: Path, mask: Path | None, checkpoint: str | None) -> OwnPicture:
    """Read and check an own image and its mask, which keep all their pixels and greys.

    Raises:
        PictureError: not a picture, no mask, or a mask that selects nothing or everything.
    """
    picture = _open(image)
    selected = _mask_of(picture, mask)
    # Masked pixels of a file from the mask editor keep their colours under the transparency.
    colours = picture.convert("RGBA").convert("RGB") if "A" in picture.getbands() else picture.convert("RGB")
    if selected.size != colours.size:
        selected = selected.resize(colours.size, Image.Resampling.BILINEAR)
    return OwnPicture(colours, selected, checkpoint)


def find_checkpoint(given: str, host: Path) -> Path:
    """The file of a checkpoint that is given as a path or as a name in the host's models/checkpoints.

    Raises:
        PictureError: there is no such file.
    """
    folder = host / "models" / "checkpoints"
    for path in (Path(given).expanduser(), folder / given):
        if path.is_file():
            return path.resolve()
    endings = (".safetensors", ".ckpt")
    known = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix in endings)
    listed = f"{folder} has {', '.join(known)}" if known else f"{folder} has none"
    raise PictureError(f"There is no checkpoint {given!r}: give the path of a file, or a name ({listed}).")


def link_checkpoint(path: Path, base: Path) -> str:
    """Make a checkpoint visible to a server with this base directory; returns the name it has there."""
    link = base / "models" / "checkpoints" / path.name
    if link.exists() and os.path.samefile(link, path):
        return path.name
    link.unlink(missing_ok=True)
    try:
        link.symlink_to(path)
    except OSError:
        try:
            os.link(path, link)
        except OSError:
            shutil.copyfile(path, link)
    return path.name


def put_in(prompt: Prompt, image_name: str, mask_name: str, checkpoint: str | None, size: int = 0) -> Prompt:
    """Replace, in place, the demo nodes of an API prompt by the host's loaders of uploaded files, fitted to the model.

    The edit goes back into the full photograph, through what Edit Masks says may change.

    Args:
        checkpoint: its name, or None for the demo model.
        size: Fit Photo's; 0 is the model's own.
    """
    scene, model, masks = (find_node(prompt, f"AttnEdit{kind}") for kind in ("DemoScene", "DemoModel", "Masks"))
    del prompt[scene]
    whole = prompt[masks]["inputs"]["task"] == "change the background"
    added: dict[str, tuple[str, dict[str, Any]]] = {
        "own_image": ("LoadImage", {"image": image_name}),
        "own_mask": ("LoadImageMask", {"image": mask_name, "channel": "red"}),
        "fit": (
            "AttnEditFitPhoto",
            {"image": ["own_image", 0], "mask": ["own_mask", 0], "model": [model, 0], "context": 0.5, "zoom": 2.0}
            | {"area": "whole picture" if whole else "around the mask", "size": size, "multiple": 0},
        ),
    }
    for entry in prompt.values():
        for name, value in entry["inputs"].items():
            if isinstance(value, list) and value[0] == scene:
                entry["inputs"][name] = ["fit", value[1]]
    after = prompt[find_node(prompt, "After")]["inputs"]
    edited = {"edited": after["images"], "photo": ["fit", 2], "mask": [masks, 0], "feather": 8}
    added["paste"] = ("AttnEditPastePhoto", edited)
    after["images"] = ["paste", 0]
    prompt[find_node(prompt, "Before")]["inputs"]["images"] = ["own_image", 0]
    for name, (kind, inputs) in added.items():
        prompt[name] = {"class_type": kind, "inputs": inputs, "_meta": {"title": name.replace("_", " ").title()}}
    if checkpoint is not None:
        # The loader's outputs are in the order of the demo node's: model, clip, vae.
        prompt[model].update(class_type="CheckpointLoaderSimple", inputs={"ckpt_name": checkpoint})
    return prompt
