"""Mask refinement as CPAM's released code does it."""

from __future__ import annotations

from dataclasses import dataclass, field

import edits
import tiny
import torch
import torch.nn.functional as F
from attention_edit.attention.engine.acts import Act, How, Site
from attention_edit.attention.engine.control import Control
from attention_edit.attention.masks.refinement import Refinement
from attention_edit.attention.methods.cpam import CPAM

WORDS = (2, 3, 5)


@dataclass(frozen=True, eq=False)
class Spy(Control):
    """Keeps queries and keys of the conditional rows of every cross-attention by step."""

    seen: dict = field(default_factory=dict)

    def acts_on(self, family):
        return (Act(Site.CROSS, family.layers, do=self.keep, how=How.STANDS_ON),)

    def keep(self, call):
        rows = call.rows(call.conditional.index(True))
        self.seen.setdefault(call.run.step, []).append((call.q[rows], call.k[rows], call.heads, call.shape))
        return call.own()


def probabilities(q, k, heads):
    """Attention maps (heads, N, L) of the first image."""
    q, k = (x[0].unflatten(-1, (heads, -1)).transpose(0, 1).double() for x in (q, k))
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)


def cut(heat, threshold=0.45):
    return (heat - heat.min()) / (heat.max() - heat.min()) > threshold


def test_the_released_rule_is_the_published_code_s(model, inversion, monkeypatch):
    """The first mask from the last layer alone, maps over their largest single value, acting in its own last layer."""
    how = Refinement(WORDS, 77, 0.5, released=True)  # the first mask is made in step 1 of three
    spy, extract, acted = Spy(), CPAM.extract, {}

    def note(self, call):
        acted[call.run.step, call.layer.index] = call.state.target.mask
        return extract(self, call)

    monkeypatch.setattr(CPAM, "extract", note)
    edits.run(model, inversion, spy, CPAM(edits.masks().refined(how), normal_share=0.0))
    size, found = (tiny.SIZE, tiny.SIZE), how.masks.by_step

    def heat(layers):
        total = torch.zeros(size)
        for q, k, heads, shape in layers:
            shares = probabilities(q, k, heads)[..., list(WORDS)]
            mean = shares.mean((0, 2)).reshape(1, 1, *shape)
            total = total + F.interpolate(mean, size=size, mode="nearest")[0, 0] / shares.max()
        return total

    assert torch.equal(found[1][0], cut(heat(spy.seen[1][-1:])))
    assert torch.equal(found[2][0], cut(heat([spy.seen[1][-1], *spy.seen[2]])))
    assert acted[1, 14] is acted[0, 0] and torch.equal(acted[1, 15], found[1])
    assert torch.equal(acted[2, 14], found[1]) and torch.equal(acted[2, 15], found[2])
