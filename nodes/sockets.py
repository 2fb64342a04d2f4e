"""The pack's own socket types and the texts that several nodes share."""

from __future__ import annotations

from ..host.schemas import io

InversionSocket = io.Custom("AEDIT_INVERSION")
EditMasksSocket = io.Custom("AEDIT_MASKS")
RegionsSocket = io.Custom("AEDIT_REGIONS")
RefinedSocket = io.Custom("AEDIT_REFINED")
PromptSocket = io.Custom("AEDIT_PROMPT")
MapsSocket = io.Custom("AEDIT_MAPS")
CurveSocket = io.Custom("AEDIT_CURVE")
BesideSocket = io.Custom("AEDIT_BESIDE")
"""Images that a method samples beside the edit, see `engine.branches`."""
PhotoSocket = io.Custom("AEDIT_PHOTO")
CATEGORY = "attention edit"
ALL_SIZES, NO_SIZE = "all", "none"
MAP_SIZES = ["quarter", "half", "full", "eighth", ALL_SIZES]
"""Layers by the side of their maps as a share of the latent's, for word maps; self-attention's can be left out."""
SELF_SIZES = [NO_SIZE, *MAP_SIZES[:-1]]
