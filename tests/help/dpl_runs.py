"""What tests of Dynamic Prompt Learning share: a run, and its loop written out plainly in float64."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

import tiny
import torch
from attention_edit.attention.methods.dpl.inversion import DynamicPromptLearning
from attention_edit.attention.methods.dpl.settings import RELEASED
from attention_edit.attention.words.prompt import read_prompt
from attention_edit.host.families import family_of
from attention_edit.inversion.ddim_inversion import DDIMInversion
from attention_edit.inversion.null_text import NullTextInversion
from tiny_clip import encoded, tiny_clip, written_out

TEXT = "a cat and a dog"


def settings(iterations=3, inner=2, null=None, **values):
    """The released settings with fewer iterations."""
    null = null or NullTextInversion(inner=inner, early_stop=0.0, anew=True, checkpointing=False)
    return replace(RELEASED, iterations=iterations, null=null, **values)


class Images:
    """What was found, by images: `learned` and `steps` hold those of each, noisy to clean."""

    def __init__(self, found):
        self.inversion, self.cost = found.inversion, found.cost
        self.learned = tuple(zip(*(step.learned for step in found.steps), strict=True))
        self.steps = tuple(zip(*(step.null for step in found.steps), strict=True))


@dataclass
class Case:
    """A model, its text encoder, and a random image inverted with a prompt."""

    kind: str = "SD1"
    v: bool = False
    text: str = TEXT
    batch: int = 1
    steps: int = 3
    model: object = field(init=False)

    def __post_init__(self):
        with torch.inference_mode():  # as a node has them
            self.model, self.clip = tiny.tiny_model(self.kind, self.v), tiny_clip(self.kind)
        self.positive = encoded(self.clip, self.text, self.kind)
        self.negative = encoded(self.clip, "", self.kind, seed=8)
        latent = {"samples": tiny.latent(1, self.batch)}
        with torch.inference_mode():
            self.inversion = DDIMInversion(self.steps, 0)(self.model, latent, self.positive).inversion
        self.prompt = read_prompt(self.clip, self.text)

    def learn(self, nouns="cat, dog", background=None, how=None, guidance=7.5, inversion=None, **values):
        """Run it as a node does."""
        method = DynamicPromptLearning(
            self.clip, self.prompt, nouns, how or settings(), mask() if background is None else background, **values
        )
        with torch.inference_mode():
            return Images(method(self.model, inversion or self.inversion, self.negative, guidance))


def mask(columns=7):
    """A background of 0..15 columns of latent cells, as a MASK."""
    found = torch.zeros(1, tiny.SIZE, tiny.SIZE)
    found[:, :, :columns] = 1
    return found.repeat_interleave(8, 1).repeat_interleave(8, 2)


class Pass:
    """One pass through the bare UNet in float64 with a softmax of its own, that keeps the cross-attention maps."""

    def __init__(self, model, pooled):
        self.unet, self.layers, self.maps = model.model.diffusion_model, family_of(model).layers, {}
        self.y = None
        if pooled is not None:
            y = model.model.encode_adm(pooled_output=pooled, width=128, height=128, device="cpu")
            self.y = None if y is None else y.double()

    def _attend(self, q, k, v, options, key=None):
        q, k, v = (x.unflatten(-1, (options["n_heads"], -1)).transpose(1, 2) for x in (q, k, v))
        found = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1)
        if key is not None:
            self.maps[key] = found
        return (found @ v).transpose(1, 2).flatten(2)

    def __call__(self, z, t, states):
        patches = {
            "attn1": {la.key: self._attend for la in self.layers},
            "attn2": {la.key: lambda *a, la=la: self._attend(*a, key=la.index) for la in self.layers},
        }
        return self.unet(z, t, context=states, y=self.y, transformer_options={"patches_replace": patches})


def plain_losses(maps, nouns, cells):
    """METHODS' losses over maps (1, H, N, L) of a square grid, with the released code's means."""
    a = torch.cat([found[0] for found in maps]).mean(0)
    side = int(len(a) ** 0.5)
    shares = torch.softmax(100 * a[:, 1:-1], -1)
    own = [a[:, list(places)].mean(-1) for places in nouns]
    e = torch.tensor(-1.0, dtype=a.dtype).exp()
    line = torch.stack([e, torch.ones_like(e), e]) / (1 + 2 * e)
    mirrored = [1, *range(side), side - 2]
    worst = []
    for places in nouns:
        grid = torch.stack([shares[:, p - 1] for p in places]).mean(0).view(side, side)[mirrored][:, mirrored]
        smooth = sum(line[i] * line[j] * grid[i : i + side, j : j + side] for i in range(3) for j in range(3))
        worst.append(1 - smooth.max())

    def cosine(x, y):
        return (x * y).sum() / (x.square().sum().sqrt() * y.square().sum().sqrt())

    pairs = [cosine(own[i], own[j]) for i in range(len(own)) for j in range(i)]
    leaks = [cosine(x, cells.double()) for x in own]
    return torch.stack(worst).max(), sum(pairs) / len(pairs), sum(leaks) / len(leaks)


class Adam:
    """Adam's update written out; `decay` is AdamW's."""

    def __init__(self, rate, decay=0.0):
        self.rate, self.decay, self.count, self.m, self.v = rate, decay, 0, {}, {}

    def __call__(self, name, x, g):
        if name not in self.m:
            self.m[name], self.v[name] = torch.zeros_like(x), torch.zeros_like(x)
        m = self.m[name] = 0.9 * self.m[name] + 0.1 * g
        v = self.v[name] = 0.999 * self.v[name] + 0.001 * g * g
        m, v = m / (1 - 0.9**self.count), v / (1 - 0.999**self.count)
        return (1 - self.rate * self.decay) * x - self.rate * m / (v.sqrt() + 1e-8)


def own_vectors(clip, text, positions):
    """The vocabulary's entries at some places, (P, C) by encoder."""
    found = {}
    for name, chunks in clip.tokenize(text).items():
        table = getattr(clip.cond_stage_model, f"clip_{name}").transformer.get_input_embeddings().weight
        flat = [value for chunk in chunks for value, _ in chunk]
        found[name] = torch.stack([table[flat[p]].double() for p in positions])
    return found


class PlainLoop:
    """Algorithm 1 by the released code, step by step.

    Args:
        places: of each noun. cells: the background on the maps' cells.
    """

    def __init__(self, case, places, how, cells):
        self.case, self.places, self.how, self.cells = case, places, how, cells
        self.model = tiny.tiny_model(case.kind, case.v, dtype=torch.float64)
        self.pooled, self.null_pooled = (x[0][1].get("pooled_output") for x in (case.positive, case.negative))
        self.coarse = [la.index for la in family_of(self.model).layers if la.scale == 4]
        self.positions = [p for noun in places for p in noun]
        self.rows = own_vectors(case.clip, case.text, self.positions)

    def noise(self, z, t, states, a, pooled):
        """The network's noise for a text at alpha a."""
        out = Pass(self.model, pooled)(z, t, states)
        return a**0.5 * out + (1 - a) ** 0.5 * z if self.case.v else out

    def learn(self, z, t, clock):
        """The losses of every pass of a step, and the states after it."""
        adam, passes, how = Adam(1e-3, 1e-2), [], self.how
        for _ in range(how.iterations):
            leaves = {name: value.clone().requires_grad_() for name, value in self.rows.items()}
            one = Pass(self.model, self.pooled)
            one(z, t, written_out(self.case.clip, self.case.text, self.positions, leaves))
            losses = plain_losses([one.maps[index] for index in self.coarse], self.places, self.cells)
            passes.append([float(x.detach()) for x in losses])
            terms = [how.losses.term(name) for name in ("at", "dj", "bg")]
            exponents = [-clock / torch.tensor(term.decay, dtype=torch.float64) for term in terms]
            bounds = [term.start * float(e.exp()) for term, e in zip(terms, exponents, strict=True)]
            if all(x < bound for x, bound in zip(passes[-1], bounds, strict=True)):
                break
            total = losses[0] + 0.05 * losses[1] + 0.05 * losses[2]
            slopes = torch.autograd.grad(total, list(leaves.values()))
            adam.count += 1
            self.rows = {name: adam(name, self.rows[name], g) for name, g in zip(leaves, slopes, strict=True)}
        return passes, written_out(self.case.clip, self.case.text, self.positions, self.rows)

    def null(self, z, t, states, levels, goal, rate, guidance):
        """The errors of a step's null texts, the last text, and the latent that it lands on."""
        (a, b), null, errors = levels, self.case.negative[0][0].double(), []
        adam = Adam(rate)
        with torch.no_grad():
            eps_c = self.noise(z, t, states, a, self.pooled)
        for number in range(self.how.null.inner + 1):
            leaf = null.clone().requires_grad_()
            eps_u = self.noise(z, t, leaf, a, self.null_pooled)
            eps = eps_u + guidance * (eps_c - eps_u)
            landed = b**0.5 * (z - (1 - a) ** 0.5 * eps) / a**0.5 + (1 - b) ** 0.5 * eps
            error = (landed - goal).square().mean()
            errors.append(float(error.detach()))
            if number < self.how.null.inner:
                (g,) = torch.autograd.grad(error, [leaf])
                adam.count += 1
                null = adam("null", null, g)
        return errors, null.detach(), landed.detach()


def plain_loop(case, places, how, cells, guidance=7.5):
    """Per step: the losses of every pass, the null text's errors, the prompt's states, and the null text."""
    loop, seen = PlainLoop(case, places, how, cells), []
    sampling, z = loop.model.model.model_sampling, case.inversion.latents[-1].double()
    for i, (high, low) in enumerate(pairwise(case.inversion.schedule)):
        clock = i * 50 / case.inversion.steps
        t, levels = sampling.timestep(torch.tensor([high])).float(), (1 / (1 + high**2), 1 / (1 + low**2))
        passes, states = loop.learn(z, t, clock)
        goal, rate = case.inversion.latents[-2 - i].double(), 1e-2 * (1 - clock / 100)
        errors, null, z = loop.null(z, t, states, levels, goal, rate, guidance)
        seen.append((passes, errors, states.detach(), null))
    return seen
