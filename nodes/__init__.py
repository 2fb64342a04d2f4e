"""The pack's nodes: each class is a schema and a call."""

from __future__ import annotations

from ..host.schemas import io
from . import (
    background,
    composite,
    cpam,
    demo,
    difference,
    dpl,
    edit_masks,
    embctrl,
    fpe,
    generated,
    inversion,
    inversion_methods,
    local_blend,
    mag,
    map_views,
    maps,
    masactrl,
    masafusion,
    p2p,
    pnp,
    prompt,
    proximal,
    refine,
    regions,
    setup,
    style_aligned,
    sweep,
)

_INVERT, *_INVERSIONS = inversion.NODES
"""DDIM Inversion comes before the nodes that improve on it, and what checks, saves and loads an inversion after."""

NODES: list[type[io.ComfyNode]] = [
    *prompt.NODES,
    *embctrl.NODES,
    _INVERT,
    *inversion_methods.NODES,
    *dpl.NODES,
    *proximal.NODES,
    *generated.NODES,
    *_INVERSIONS,
    *edit_masks.NODES,
    *cpam.NODES,
    *fpe.NODES,
    *masactrl.NODES,
    *masafusion.NODES,
    *p2p.NODES,
    *local_blend.NODES,
    *pnp.NODES,
    *style_aligned.NODES,
    *mag.NODES,
    *background.NODES,
    *composite.NODES,
    *refine.NODES,
    *difference.NODES,
    *regions.NODES,
    *maps.NODES,
    *map_views.NODES,
    *setup.NODES,
    *sweep.NODES,
    *demo.NODES,
]
