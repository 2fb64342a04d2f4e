"""The host's EasyCache and LazyCache beside inversions and edits: what must be exact is never skipped."""

from __future__ import annotations

import edits
import pytest
import torch
from attention_edit.attention.methods.cpam import CPAM
from attention_edit.attention.methods.fpe import FPE
from attention_edit.attention.methods.masactrl import MasaCtrl
from attention_edit.attention.methods.pnp import PnP
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode

CACHES = {"easy": EasyCacheNode, "lazy": LazyCacheNode}
METHODS = {"CPAM": lambda: CPAM(edits.masks()), "FPE": FPE, "MasaCtrl": MasaCtrl, "PnP": PnP}


def cached(model, kind, threshold=1e6):
    """With a threshold that is never reached, so that it skips whatever it may."""
    (patched,) = CACHES[kind].execute(model, threshold, 0.0, 1.0, False).result
    return patched


@pytest.mark.parametrize("kind", CACHES)
def test_an_inversion_is_made_without_the_cache(model, kind):
    patched = cached(model, kind)
    assert torch.equal(edits.invert(patched).latents, edits.invert(model).latents)
    assert any("cache" in key for found in patched.wrappers.values() for key in found)  # still there for the edit


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("packed", [False, True])
def test_the_source_runs_in_every_step(model, name, packed):
    """The cache skips calls of the edit only, before and after the method's node."""
    inversion, control = edits.invert(model, steps=8), METHODS[name]()
    calls = []
    plain = edits.run(model, inversion, control, packed=packed)
    first = model.model.diffusion_model.input_blocks[0][0]  # the cache sits between the UNet's call and its layers
    hook = first.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    edits.run(model, inversion, control, packed=packed)
    whole, found = sum(calls), []
    for patched in (cached(model, "easy"), cached(model, "easy", 0.0)):
        calls.clear()
        found.append(edits.run(patched, inversion, control, packed=packed))
        assert torch.isfinite(found[-1]).all()
        found[-1] = (found[-1], sum(calls))
    hook.remove()
    (skipping, fewer), (never, all_of_them) = found
    assert all_of_them == whole and edits.difference(never, plain) < 1e-5
    assert fewer < whole and not torch.equal(skipping, plain)
