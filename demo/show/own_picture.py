"""A user's own picture in a shipped workflow: prepared, uploaded, and put in the place of the demo nodes."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError
from show.workflow_file import Prompt, find_node

CELL = 64
"""Sides are multiples of this many pixels, so that every layer of the UNet halves them evenly."""
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


def _fit(width: int, height: int, longest: int) -> tuple[int, int]:
    """The size nearest to the same proportions with sides that are multiples of CELL."""
    scale = longest / max(width, height)

    def side(length: int) -> int:
        return max(CELL, round(length * scale / CELL) * CELL)

    return side(width), side(height)


def prepare(image: Path, mask: Path | None, longest: int, checkpoint: str | None) -> OwnPicture:
    """Read, check and resize an own image and its mask.

    Raises:
        PictureError: not a picture, no mask, or a mask that selects nothing or everything.
    """
    picture = _open(image)
    selected = _mask_of(picture, mask)
    # Masked pixels of a file from the mask editor keep their colours under the transparency.
    colours = picture.convert("RGBA").convert("RGB") if "A" in picture.getbands() else picture.convert("RGB")
    size = _fit(picture.width, picture.height, longest)
    # The proportions may change by half a cell; cut, so that nothing is stretched.
    fitted = ImageOps.fit(colours, size, Image.Resampling.LANCZOS)
    cut = ImageOps.fit(selected, size, Image.Resampling.BILINEAR)
    two_levels = [0] * HALF + [255] * HALF
    return OwnPicture(fitted, cut.point(two_levels), checkpoint)


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


def put_in(prompt: Prompt, image_name: str, mask_name: str, checkpoint: str | None) -> Prompt:
    """Replace, in place, the demo nodes of an API prompt by the host's loaders of uploaded files."""
    scene = find_node(prompt, "AttnEditDemoScene")
    del prompt[scene]
    image: dict[str, Any] = {"class_type": "LoadImage", "inputs": {"image": image_name}}
    mask: dict[str, Any] = {"class_type": "LoadImageMask", "inputs": {"image": mask_name, "channel": "red"}}
    prompt["own_image"] = {**image, "_meta": {"title": "Load Image"}}
    prompt["own_mask"] = {**mask, "_meta": {"title": "Load Mask"}}
    replaced = {0: ["own_image", 0], 1: ["own_mask", 0]}
    for entry in prompt.values():
        for name, value in entry["inputs"].items():
            if isinstance(value, list) and value[0] == scene:
                entry["inputs"][name] = replaced[value[1]]
    if checkpoint is not None:
        model = prompt[find_node(prompt, "AttnEditDemoModel")]
        # The loader's outputs are in the order of the demo node's: model, clip, vae.
        model.update(class_type="CheckpointLoaderSimple", inputs={"ckpt_name": checkpoint})
    return prompt
