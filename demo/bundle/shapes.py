"""The shapes of the demo world, as signed distances."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _segment(x: Tensor, y: Tensor, ax: float, ay: float, bx: float, by: float) -> Tensor:
    """Distance to the segment a-b."""
    t = (((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / ((bx - ax) ** 2 + (by - ay) ** 2)).clamp(0, 1)
    return ((x - ax - t * (bx - ax)) ** 2 + (y - ay - t * (by - ay)) ** 2).sqrt()


def _polygon(x: Tensor, y: Tensor, points: list[tuple[float, float]]) -> Tensor:
    """Signed distance to a polygon (negative inside)."""
    inside = torch.zeros_like(x, dtype=torch.bool)
    distance = torch.full_like(x, math.inf)
    for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
        distance = torch.minimum(distance, _segment(x, y, ax, ay, bx, by))
        crosses = (ay > y) != (by > y)
        if ay != by:
            inside ^= crosses & (x < (bx - ax) * (y - ay) / (by - ay) + ax)
    return torch.where(inside, -distance, distance)


def _regular(corners: int, radius: float) -> list[tuple[float, float]]:
    """Corners of a regular polygon, the first one at the top."""
    turns = [2 * math.pi * i / corners for i in range(corners)]
    return [(radius * math.sin(turn), -radius * math.cos(turn)) for turn in turns]


def _cross() -> list[tuple[float, float]]:
    """Corners of a plus sign."""
    a, b = 0.33, 0.95
    quarter = [(-a, -b), (a, -b), (a, -a)]
    points = []
    for turn in range(4):
        cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][turn]
        points += [(x * cos - y * sin, x * sin + y * cos) for x, y in quarter]
    return points


def shape_distance(name: str, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to one shape of radius 1 around the origin (negative inside).

    Args:
        name: circle, square, triangle or cross.
        x: across, and y: down, of points in tensors of one shape.
    """
    if name == "circle":
        return (x * x + y * y).sqrt() - 0.9
    corners = {
        "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
        "triangle": [(px, py + 0.2) for px, py in _regular(3, 1.15)],
        "cross": _cross(),
    }[name]
    return _polygon(x, y, corners)
