"""Maps of layers whose size another node changes within a run: the host's Deep Shrink."""

from __future__ import annotations

import edits
import pytest
import torch
from attention_edit.attention.engine.install import install
from attention_edit.attention.maps.recorder import AttentionMaps, RecordMaps
from attention_edit.attention.maps.sizes import add_tokens, alike
from attention_edit.attention.methods.local_blend import LocalBlend
from attention_edit.attention.methods.masactrl import MasaCtrl, WordMasks
from comfy_extras.nodes_model_downscale import PatchModelAddDownscale
from prompts import prompt

SOURCE, TARGET = prompt("a red cat"), prompt("a blue cat")


def shrunk(model, end=0.35):
    (patched,) = PatchModelAddDownscale.execute(model, 3, 2.0, 0.0, end, True, "bicubic", "bicubic").result
    return patched


def test_maps_are_recorded_at_the_largest_size(model, inversion):
    for source in (shrunk(model), model):
        made = RecordMaps(AttentionMaps(SOURCE), (1, 2, 4, 8), (4,))
        edits.run(install(source, made), inversion)
        found = made.maps.recording
        for scale, mean in found.cross.items():
            side = 16 // scale
            assert mean.shape == (side, side) and mean.values.shape[1] == side * side
        own = found.own[4].values
        assert own.shape == (1, 16, 16) and torch.allclose(own.sum(-1), torch.ones(1, 16), atol=1e-4)


@pytest.mark.parametrize(
    "control",
    [
        lambda: LocalBlend(SOURCE, TARGET, ["cat"], ["cat"], threshold=0.9999),
        lambda: MasaCtrl(words=WordMasks(SOURCE, TARGET, "cat", "cat")),
    ],
    ids=["local blend", "masactrl"],
)
def test_edits_that_sum_maps_run(model, inversion, control):
    out = edits.run(shrunk(model), inversion, control())
    assert torch.isfinite(out).all()
    assert not torch.equal(out, edits.run(shrunk(model), inversion))


@pytest.mark.parametrize("own", [False, True])
def test_a_flat_map_stays_flat_and_its_shares_add_up(own):
    """In either order, and what has one size already is added up exactly."""
    small, large = (torch.full((2, n, n if own else 3), 1 / (n if own else 3)) for n in (4, 16))
    for one, two, sizes in ((small, large, ((2, 2), (4, 4))), (large, small, ((4, 4), (2, 2)))):
        total, shape = add_tokens(one.clone(), sizes[0], two.clone(), sizes[1], own)
        assert shape == (4, 4) and torch.allclose(total, 2 * large)
    values = torch.rand(1, 16, 16)
    assert torch.equal(add_tokens(values.clone(), (4, 4), values, (4, 4), own)[0], 2 * values)


def test_what_is_seen_keeps_its_place():
    """A corner of the small map is that corner of the large one."""
    corner = torch.zeros(1, 4, 4)
    corner[0, :, 3] = 1.0  # all look at the lower right
    total, _ = add_tokens(corner, (2, 2), torch.zeros(1, 16, 16), (4, 4), own=True)
    seen = total.sum(1).unflatten(1, (4, 4))[0]
    assert int(seen.argmax()) == 15 and torch.allclose(total.sum(-1), torch.ones(1, 16))
    assert [tuple(m.shape) for m in alike([torch.ones(1, 2, 2), torch.ones(1, 4, 4)])] == [(1, 4, 4)] * 2
