"""Methods that follow the words' maps, on joint attention: in one call with the source, and in a batch."""

from __future__ import annotations

from dataclasses import replace

import edits
import pytest
from followed_words import CONTROLS, follow, inverted, stock
from tiny_joint import EXACT

ALL = pytest.mark.parametrize("name", list(CONTROLS))


@ALL
@pytest.mark.parametrize("kind", ["Flux2", "SD3"])
def test_packed_is_apart_and_a_batch_is_its_images(kind: str, name: str) -> None:
    controls, (model, pair) = CONTROLS[name], inverted(kind, batch=2)
    both = follow(model, pair, *controls, kind=kind, batch=2)
    if name != "MasaCtrl" or kind == "Flux2":  # else the halves of guidance come in calls of their own, either first
        assert edits.difference(follow(model, pair, *controls, kind=kind, batch=2, packed=True), both) < EXACT
    assert edits.difference(both, stock(kind, 2)) > 10 * EXACT
    for i in range(2):
        one = replace(pair, latents=pair.latents[:, i : i + 1])
        assert edits.difference(both[i : i + 1], follow(model, one, *controls, kind=kind)) < EXACT
