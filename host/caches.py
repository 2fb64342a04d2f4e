"""The host's caches that skip whole calls of the model: EasyCache and LazyCache (comfy_extras/nodes_easycache.py).

What they estimate from other steps is good enough for a step of the edit. An inversion, the source branch and a pass
for a gradient are exact or worthless, so that these run as if the cache were not there.
"""

from __future__ import annotations

from typing import Any

from comfy.patcher_extension import WrappersMP

CACHES = {"easycache": "EasyCache", "lazycache": "LazyCache"}
"""The keys of their wrappers, and what their nodes are called."""


def remove_caches(model: Any) -> None:
    """Take the caches off a host MODEL, in place."""
    for kind in list(model.wrappers):
        for key in CACHES:
            model.remove_wrappers_with_key(kind, key)


def step_caches_on(model: Any) -> tuple[str, ...]:
    """The caches on a host MODEL that answer whole steps, before any part of the model is asked, by their nodes."""
    found = model.wrappers.get(WrappersMP.PREDICT_NOISE, {})
    return tuple(name for key, name in CACHES.items() if found.get(key))


def without_caches(options: dict[str, Any]) -> dict[str, Any]:
    """A run's model options, with the caches left out of a copy."""
    transformer = options.get("transformer_options", {})
    wrappers = {
        kind: {key: found for key, found in by_key.items() if key not in CACHES}
        for kind, by_key in transformer.get("wrappers", {}).items()
    }
    return {**options, "transformer_options": {**transformer, "wrappers": wrappers}}
