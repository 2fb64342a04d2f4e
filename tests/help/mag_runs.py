"""What tests of MAG-Edit share: guided runs of a tiny model, and its loop written out plainly."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import edits
import tiny
import torch
from attention_edit.attention.engine.acts import Site
from attention_edit.attention.engine.install import install, pin
from attention_edit.attention.masks.cells import dilate, resize
from attention_edit.attention.methods.mag.control import MAG
from attention_edit.attention.methods.mag.install import add_guidance
from attention_edit.host.families import family_of

WORDS = ((3,), (4, 5))
STUB = torch.tensor([14.6, 0.0])
CELLS = (tiny.SIZE, tiny.SIZE)


def part(mask=None, **values) -> MAG:
    """Guidance of a box with two updates in each step of the first half."""
    return MAG(WORDS, edits.box() if mask is None else mask, **{"iterations": 2, **values})


def guided(model, inversion, *parts, under=(), kind="SD1", positive=2, **kwargs):
    """Run parts, and controls underneath, on the inversion's schedule."""
    for control in under:
        model = install(model, control, inversion)
    for one in parts:
        model = add_guidance(model, one, inversion)
    model = pin(model, inversion, tuple(inversion.schedule))
    start = edits.run_start(kwargs.pop("batch", 1))
    return tiny.sample(model, tiny.prompt(positive, kind), tiny.prompt(3, kind), start, STUB, **kwargs)


@dataclass(frozen=True, eq=False)
class Probe(MAG):
    """Looks at the latent before and after, and may ask the network more."""

    seen: list[Any] = field(default_factory=list)
    ask: Any = None

    def before(self, run, state, x, network):
        if self.ask is not None:
            self.seen.append(self.ask(self, run, x, network))
        result = super().before(run, state, x, network)
        self.seen.append((x.clone(), result.clone()))
        return result


def asked(model, ask, kind="SD1", batch=1, mask=None, **values):
    """What the network answers at a first step; the run itself guides once."""
    probe = Probe(WORDS, edits.box() if mask is None else mask, iterations=1, end=1.0, ask=ask, **values)
    patched = install(model, probe)
    with torch.inference_mode():
        start = tiny.latent(4, batch)
    sigmas = torch.tensor([5.0, 1.0])
    tiny.sample(patched, tiny.prompt(2, kind), tiny.prompt(3, kind), start, sigmas)
    return probe.seen[0]


def slope_of(probe, run, x, network, loss=None, double=False):
    layers = probe.layers(run.family)
    latent = torch.zeros(x.shape).copy_(x).to(torch.float64 if double else torch.float32)
    with network.slopes(layers, probe.checkpointing) as slope:
        latent = latent.clone()
        return slope(latent, loss or (lambda maps: probe.loss(run, maps, probe.words)[0].sum())).clone()


class Plain:
    """One conditioning's pass through the bare UNet with PyTorch's own softmax, and what another pass left to it.

    Attributes:
        maps: by layer, the cross-attention maps that were used. features: by layer, self-attention's q and k.
    """

    def __init__(self, model, source=None, mapping=None, shared=()):
        self.unet, self.layers = model.model.diffusion_model, family_of(model).layers
        self.source, self.mapping, self.shared = source, mapping, shared
        self.maps, self.features = {}, {}

    def _attend(self, q, k, v, options, rewrite):
        heads, key = options["n_heads"], (*options["block"], options["block_index"])
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        found = rewrite(key, q, k, torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1))
        return (found @ v).transpose(1, 2).flatten(2)

    def _cross(self, key, q, k, own):
        if self.mapping is not None:
            own = self.source.maps[key] @ self.mapping.transfer + own * self.mapping.keep
        self.maps[key] = own
        return own

    def _self(self, key, q, k, own):
        self.features[key] = own
        return self.source.features[key] if key in self.shared else own

    def __call__(self, z, t, states):
        patches = {
            "attn1": {la.key: lambda *a: self._attend(*a, self._self) for la in self.layers},
            "attn2": {la.key: lambda *a: self._attend(*a, self._cross) for la in self.layers},
        }
        return self.unet(z, t, context=states, transformer_options={"patches_replace": patches})


def token_loss(maps, mask):
    """METHODS' token ratio of WORDS over maps, written out."""
    loss = 0.0
    for found in maps:
        for word in WORDS:
            share = found[..., list(word)].mean(-1) / found.sum(-1)
            ratio = (share * mask[:, None]).sum(-1) / mask.sum()
            loss = loss + ((1 - ratio) ** 2).mean() / len(maps) / len(WORDS)
    return loss


def written_out(model, inversion, mask, iterations, scale, guidance, blend, p2p=None):
    """The released loop: updates, a DDIM step with guidance, blending; z (B, C, h, w) in DDPM scale.

    Source and edit are passes of their own. With Prompt-to-Prompt the edit's conditional pass has rewritten
    cross maps, and the source's self maps in layers of up to 32 x 32 tokens.
    """
    sampling, coarse = model.model.model_sampling, [la.key for la in family_of(model).layers if la.scale == 4]
    source, c, u = (tiny.prompt(seed)[0][0] for seed in (5, 2, 3))
    m64, m16 = resize(mask, CELLS)[:, None].float(), resize(mask, (4, 4)).flatten(1)
    free = dilate(resize(mask, CELLS), 1)[:, None].float()
    sigmas, z = inversion.schedule, inversion.latents[-1].clone()
    for i, (high, low) in enumerate(pairwise(sigmas)):
        t = sampling.timestep(torch.tensor([high])).float()
        a, b = 1 / (1 + high**2), 1 / (1 + low**2)

        def edit(i=i, t=t):
            """A fresh pass of the edit, after one of the source."""
            if p2p is None:
                return Plain(model)
            recon = Plain(model)
            with torch.no_grad():
                recon(inversion.latents[-1 - i], t, source)
            gate = p2p.gate(i, inversion.steps)
            kept = i < int(p2p.self_window[1] * inversion.steps)
            own = next(act for act in p2p.acts_on(family_of(model)) if act.at is Site.SELF)
            shared = [la.key for la in own.layers] if kept else []
            return Plain(model, recon, p2p.mapping.gated(gate), shared)

        for _ in range(iterations if i < inversion.steps / 2 else 0):
            leaf, one = z.detach().requires_grad_(), edit()
            one(leaf, t, c)
            (g,) = torch.autograd.grad(scale * token_loss([one.maps[key] for key in coarse], m16), leaf)
            z = z - high * m64 * g
        with torch.no_grad():
            eps_u, eps_c = Plain(model)(z, t, u), edit()(z, t, c)
            eps = eps_u + guidance * (eps_c - eps_u)
            z = b**0.5 * (z - (1 - a) ** 0.5 * eps) / a**0.5 + (1 - b) ** 0.5 * eps
            if i >= blend * inversion.steps:
                z = free * z + (1 - free) * inversion.latents[len(sigmas) - 2 - i]
    return z
