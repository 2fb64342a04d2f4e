"""One attention call by hand, with random features in float64, and attention written out to compare with."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from attention_edit.attention.engine.acts import Act, How, Site
from attention_edit.attention.engine.call import AttentionCall, Features
from attention_edit.attention.engine.control import Control
from attention_edit.attention.engine.plan import Plan
from attention_edit.attention.engine.run import Run
from attention_edit.attention.engine.site import Own
from attention_edit.host.families import SD1

HEADS, WIDTH, SIDE = 2, 8, 8


def attend(q, k, v, **_):
    """Attention of q (R, N, C) to k and v (R, L, C) with HEADS heads, written out."""
    q, k, v = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v))
    scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return (scores @ v).transpose(1, 2).flatten(2)


def masked_attention(q, k, v, keys):
    """The papers' code: log M added to the columns of masked keys."""
    q, k, v = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + torch.log(keys.double())
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def random(*shape, seed):
    """Normal values in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make_call(  # noqa: PLR0913, PLR0917
    control, layer=9, step=10, seed=0, chunks=2, batch=1, extra=None, tokens=None, side=SIDE
):
    """One attention with random features in float64, at a step of a 50-step run."""
    sigmas = [float(s) for s in range(50, 0, -1)]
    run = Run(SD1, seed, [*sigmas, 0.0], (SIDE, SIDE), SimpleNamespace(conds={}), plan=Plan((control,)))
    run.move_to(sigmas[step])
    run.states[control] = control.begin(run)
    rows, tokens = chunks * batch, tokens or side * side
    q, k, v = (random(rows, n, HEADS * WIDTH, seed=i) for i, n in enumerate((side * side, tokens, tokens)))
    source = Features(*(random(rows, side * side, HEADS * WIDTH, seed=10 + i) for i in range(3)))
    return AttentionCall(
        run=run,
        layer=SD1.layers[layer],
        shape=(side, side),
        q=q,
        k=k,
        v=v,
        conditional=(False, True)[:chunks],
        batch=batch,
        own=Own(lambda: attend(q, k, v), plain=True),
        attend=attend,
        source=source,
        state=run.states[control],
        extra=extra,
    )


class Spy(Control):
    """Looks at what FPE stands on and leaves behind in one layer."""

    name = "spy"

    def __init__(self, halves=None):
        self.calls, self.halves = [], halves

    def acts_on(self, family):
        # It reads the source as FPE does, to be compared with.
        reads = "" if self.halves is None else "qk"
        acts = {"do": self.look, "reads": reads, "own_half": bool(self.halves), "how": How.STANDS_ON}
        return (Act(Site.SELF, family.layers[:4], **acts),)

    def look(self, call):
        out = call.own()
        self.calls.append((call, out))
        return out


def reference(call, q, k, v):
    """Weights (R, H, N, L) and output (R, N, C) of attention with the heads of a call."""
    heads = call.heads
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return weights, (weights @ v).transpose(1, 2).flatten(2)
