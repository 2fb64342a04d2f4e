"""Sheets, thumbnails and the README's picture from the images of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

GAP = 12
LINE = 24
LEAST = 256
"""Smaller pictures are shown at this size."""


def enlarge(picture: Image.Image, side: int = LEAST) -> Image.Image:
    """The picture, its longest side brought to `side` pixels when it is smaller."""
    scale = side / max(picture.size)
    if scale <= 1:
        return picture.convert("RGB")
    size = (round(picture.width * scale), round(picture.height * scale))
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def sheet(columns: Mapping[str, Image.Image], title: str) -> Image.Image:
    """Named pictures side by side under a title."""
    shown = {name: enlarge(picture) for name, picture in columns.items()}
    width = sum(p.width for p in shown.values()) + GAP * (len(shown) + 1)
    height = max(p.height for p in shown.values()) + 2 * LINE + 2 * GAP
    made = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(made), ImageFont.load_default(16)
    pen.text((GAP, GAP // 2), title, fill="black", font=font)
    left = GAP
    for name, picture in shown.items():
        pen.text((left, GAP // 2 + LINE), name, fill="#555555", font=font)
        made.paste(picture, (left, GAP // 2 + 2 * LINE))
        left += picture.width + GAP
    return made


def thumbnail(before: Image.Image | None, after: Image.Image, side: int = 256) -> Image.Image:
    """Before and after as one picture of 2:1, for the template browser; a wide result, or one from nothing, alone."""
    made = Image.new("RGB", (2 * side, side), "white")
    alone = before is None or after.width > 1.5 * after.height
    if before is None or alone:
        _fit(made, after, (0, 0, 2 * side, side))
    else:
        _fit(made, before, (0, 0, side, side))
        _fit(made, after, (side + 1, 0, 2 * side, side))
    return made


def _fit(made: Image.Image, picture: Image.Image, box: tuple[int, int, int, int]) -> None:
    """Put a picture into the middle of a box, as large as it goes."""
    left, top, right, bottom = box
    scale = min((right - left) / picture.width, (bottom - top) / picture.height)
    size = (round(picture.width * scale), round(picture.height * scale))
    small = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    made.paste(small, (left + (right - left - size[0]) // 2, top + (bottom - top - size[1]) // 2))


def strip(pairs: Sequence[tuple[str, Image.Image, Image.Image]], side: int = 192) -> Image.Image:
    """Labelled before/after pairs: befores in the first row, afters in the second."""
    width = len(pairs) * (side + GAP) + GAP
    made = Image.new("RGB", (width, 2 * (side + GAP) + LINE + GAP), "white")
    pen, font = ImageDraw.Draw(made), ImageFont.load_default(15)
    for place, (label, *pictures) in enumerate(pairs):
        left = GAP + place * (side + GAP)
        pen.text((left, GAP // 2), label, fill="black", font=font)
        for row, picture in enumerate(pictures):
            small = picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
            made.paste(small, (left, LINE + GAP // 2 + row * (side + GAP)))
    return made


def icon(before: Image.Image, after: Image.Image, side: int = 400) -> Image.Image:
    """One square: the picture before, and below its diagonal after the edit."""
    half = Image.new("L", (side, side))
    ImageDraw.Draw(half).polygon([(side, 0), (side, side), (0, side)], fill=255)
    shown = [p.convert("RGB").resize((side, side), Image.Resampling.LANCZOS) for p in (before, after)]
    shown[0].paste(shown[1], mask=half)
    ImageDraw.Draw(shown[0]).line([(side, 0), (0, side)], fill="white", width=side // 50)
    return shown[0]


def banner(name: str, pairs: Sequence[tuple[str, Image.Image, Image.Image]], width: int = 1680) -> Image.Image:
    """A name over before/after pairs, 21:9 as the registry shows it."""
    height = width * 9 // 21
    made = Image.new("RGB", (width, height), "white")
    pairs_shown = strip(pairs)
    scale = min((width - 2 * GAP) / pairs_shown.width, 0.8 * height / pairs_shown.height)
    size = (round(pairs_shown.width * scale), round(pairs_shown.height * scale))
    font = ImageFont.load_default(height // 9)
    ImageDraw.Draw(made).text((width // 2, height // 10), name, fill="black", font=font, anchor="mm")
    made.paste(pairs_shown.resize(size, Image.Resampling.LANCZOS), ((width - size[0]) // 2, height // 5))
    return made
