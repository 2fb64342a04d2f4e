"""Nodes that make masks, follow them through a run, and put the photograph's pixels back around them."""

from __future__ import annotations

TILE = 128
"""Pixels: the height of one mask in a picture of many."""
