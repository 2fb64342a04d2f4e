"""What is kept of the rows that acts read - the source's, or those of a branch's part - and how acts get at it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...host.families import Layer
from ...host.marks import KEY, KEY_NEGATIVE
from .acts import Site
from .call import Features, SourceRows
from .roles import Call, Group, is_conditional

EVERY = slice(None)


def keep_features(call: Call, site: Site, layer: Layer, q: Tensor, k: Tensor, v: Tensor) -> None:
    """Keep the features of a call's rows (R, N or L, C) that an act reads here, without the host's repetition of text.

    The source's go by their role; those of a part by their conditioning's identity and by their half of guidance, see
    `read_features`.
    """
    acting = call.run.acting
    if reads := acting.reads(site, layer.index) if call.sources else None:
        captured = call.run.captured.setdefault((site, layer.index), {})
        for role, length, rows in call.sources:
            text = slice(length or None) if site is Site.CROSS else EVERY
            captured[role] = _kept(reads, q, k, v, EVERY if len(rows) == len(q) else rows, text)
    for group in call.groups:
        if not group.part or not (reads := acting.reads(site, layer.index, group.part)):
            continue
        captured = call.run.captured.setdefault((site, layer.index), {})
        for chunk, (role, uuid) in enumerate(zip(group.roles, group.uuids, strict=True)):
            text = slice(group.lengths[chunk] or None) if site is Site.CROSS else EVERY
            rows = group.rows[chunk * call.batch : (chunk + 1) * call.batch]
            kept = _kept(reads, q, k, v, rows, text)
            captured[group.part, uuid] = captured[group.part, is_conditional(role)] = kept


def _kept(reads: set[str], q: Tensor, k: Tensor, v: Tensor, rows: Tensor | slice, text: slice) -> Features:
    parts = {"q": (q, EVERY), "k": (k, text), "v": (v, text)}
    kept = {name: part[:, tokens][rows] for name, (part, tokens) in parts.items() if name in reads}
    return Features(kept.get("q"), kept.get("k"), kept.get("v"))


def as_kept(features: Features) -> Features:
    """What is read is what was kept."""
    return features


def read_features(
    call: Call,
    group: Group,
    place: tuple[Site, int],
    of: str,
    own_half: bool,
    dtype: torch.dtype,
    fitted: Callable[[Features], Features] = as_kept,
) -> SourceRows | None:
    """What acts on a group read in a place, repeated to the group's rows; None if it has not come by.

    The source prompt's features are for every chunk, or for the conditional ones only (`Act.own_half`). Of a part each
    chunk reads the chunk with the same conditioning, or else the one of its own half of guidance. `fitted` makes of
    features what the reading rows can use, such as keys at their own positions.
    """
    captured = call.run.captured.get(place) or {}
    if of:
        chunks = zip(group.uuids, group.conditional, strict=True)
        found = [captured.get((of, uuid), captured.get((of, half))) for uuid, half in chunks]
    else:
        prompt = captured.get(KEY)
        other = captured.get(KEY_NEGATIVE, prompt) if own_half else prompt
        found = [prompt if conditional else other for conditional in group.conditional]
    there = [features for features in found if features is not None]
    return SourceRows([fitted(x) for x in there], call.batch, dtype) if len(there) == len(found) else None
