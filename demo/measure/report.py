"""Results as Markdown tables, JSON and sheets of pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

GAP = 4
TEXT_HEIGHT = 14


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    ruler = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(header), line(ruler), *(line(row) for row in rows)]) + "\n"


def share(values: Sequence[bool]) -> float:
    """Share of what holds, 0..1; not a number where there is nothing."""
    return sum(values) / len(values) if values else float("nan")


def percent(share: float) -> str:
    """A share of 0..1 for a table."""
    return f"{100 * share:.1f} %"


def drawing_table(drawn: Sequence[Mapping[str, float]]) -> str:
    """How well the model draws, one row per guidance."""
    header = ["guidance", "one object", "two objects", "background", "invented things"]
    keys = ("one_object", "two_objects", "background", "invented")
    return markdown(header, [[f"{d['guidance']:g}", *(percent(d[key]) for key in keys)] for d in drawn])


def bar_table(shares: Mapping[str, float], bars: Mapping[str, float]) -> str:
    """What was reached beside what is wanted."""
    rows = [
        [name, percent(shares[name]), percent(bar), "yes" if shares[name] >= bar else "no"]
        for name, bar in bars.items()
    ]
    return markdown(["model", "reached", "wanted", "good"], rows)


def edit_table(edited: Sequence[Mapping[str, float | str]]) -> str:
    """How well the methods did one task."""
    header = [
        str(edited[0]["task"]),
        "edit success",
        "background PSNR",
        "16 px further",
        "PSNR to the truth",
        "UNet rows",
        "time",
    ]
    rows = [
        [
            str(e["method"]),
            percent(float(e["success"])),
            f"{float(e['background_psnr']):.1f} dB",
            f"{float(e['far_psnr']):.1f} dB",
            f"{float(e['truth_psnr']):.1f} dB",
            f"{float(e['rows']):g}",
            f"{float(e['time_ratio']):.2f}x",
        ]
        for e in edited
    ]
    return markdown(header, rows)


def by_task(table: Callable[[list[dict[str, Any]]], str], entries: Sequence[dict[str, Any]]) -> str:
    """A table for each "task" of the entries, in the order in which these come first."""
    names = dict.fromkeys(entry["task"] for entry in entries)
    return "\n".join(table([entry for entry in entries if entry["task"] == name]) for name in names)


def overlap_table(title: str, labels: Sequence[str], overlaps: Sequence[tuple[float, float]]) -> str:
    """Overlap of masks from attention maps with the true ones, on scenes with one and with two objects."""
    rows = [[label, percent(one), percent(two)] for label, (one, two) in zip(labels, overlaps, strict=True)]
    return markdown([title, "IoU, one object", "IoU, two objects"], rows)


def save_json(path: Path, results: Mapping[str, object]) -> None:
    """Write results; what is not a number becomes null, which JSON knows."""

    def plain(value: object) -> object:
        if isinstance(value, Mapping):
            return {str(key): plain(entry) for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(entry) for entry in value]
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return value

    path.write_text(json.dumps(plain(results), indent=1) + "\n", "utf-8")


def _picture(image: Tensor) -> Image.Image:
    """An image (3, H, W) in 0..1."""
    values = image.detach().float().cpu().clamp(0, 1).movedim(0, -1).numpy()
    return Image.fromarray((values * 255).round().astype(np.uint8))


def save_sheet(path: Path, columns: Mapping[str, Tensor], labels: Sequence[str]) -> None:
    """Write a PNG with one named column (B, 3, H, W) of images per entry, and a label over each row."""
    first = next(iter(columns.values()))
    height, width = first.shape[-2:]
    row_height = height + GAP + TEXT_HEIGHT
    size = (len(columns) * (width + GAP) + GAP, TEXT_HEIGHT + GAP + len(labels) * row_height)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for x, (name, images) in enumerate(columns.items()):
        left = GAP + x * (width + GAP)
        pen.text((left, 1), name, fill="black")
        for y, image in enumerate(images):
            sheet.paste(_picture(image), (left, TEXT_HEIGHT + GAP + y * row_height + TEXT_HEIGHT))
    for y, label in enumerate(labels):
        pen.text((GAP, TEXT_HEIGHT + GAP + y * row_height), label, fill="black")
    sheet.save(path)


PLOT_COLOURS = ("#222222", "#c22f2f", "#2f6fc2", "#2f9e44", "#c28a2f", "#8a2fc2", "#2fb5b5", "#c22f8a", "#7a7a7a")


def save_plot(path: Path, series: Mapping[str, Sequence[tuple[float, float]]], across: str, up: str) -> None:
    """Write a PNG of named lines through points (x, y), with a legend; what is not finite is left out."""
    lines = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in series.items()}
    points = [p for line in lines.values() for p in line]
    (left, right), (low, high) = ((min(v), max(v)) for v in zip(*points, strict=True))
    width, height, margin = 760, 420, 48
    picture = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture)
    box = (margin, 24, width - 260, height - margin)
    pen.rectangle(box, outline="#999999")
    pen.text((margin, 6), up, fill="black")
    pen.text(((box[0] + box[2]) / 2, box[3] + 20), across, fill="black")

    def place(x: float, y: float) -> tuple[float, float]:
        along, above = (x - left) / ((right - left) or 1), (y - low) / ((high - low) or 1)
        return box[0] + along * (box[2] - box[0]), box[3] - above * (box[3] - box[1])

    for value in (low, (low + high) / 2, high):
        pen.text((4, place(left, value)[1] - 6), f"{value:.1f}", fill="#555555")
    for value in sorted({x for x, _ in points}):
        pen.text((place(value, low)[0] - 6, box[3] + 4), f"{value:g}", fill="#555555")
    for number, (name, line) in enumerate(lines.items()):
        colour = PLOT_COLOURS[number % len(PLOT_COLOURS)]
        placed = [place(*point) for point in line]
        if len(placed) > 1:
            pen.line(placed, fill=colour, width=2)
        for x, y in placed:
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        pen.text((box[2] + 12, 28 + 18 * number), name, fill=colour)
    picture.save(path)


def save_grid(path: Path, images: Tensor, labels: Sequence[str], across: int = 6) -> None:
    """Write a PNG of images (B, 3, H, W) in rows, each with its label below."""
    height, width = images.shape[-2:]
    step_x, step_y = width + GAP, height + GAP + 3 * TEXT_HEIGHT
    size = (across * step_x + GAP, math.ceil(len(images) / across) * step_y + GAP)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        left, top = GAP + i % across * step_x, GAP + i // across * step_y
        sheet.paste(_picture(image), (left, top))
        pen.multiline_text((left, top + height), _wrapped(label, width // 6), fill="black", spacing=1)
    sheet.save(path)


def _wrapped(text: str, most: int) -> str:
    """Text in lines of at most some characters."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > most:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
