"""MaSaFusion's images in tests, and its Algorithms 1 and 5 written out with hooks of the host alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import comfy.samplers
import edits
import tiny
import torch
from attention_edit.attention.engine import install as engine
from attention_edit.attention.methods.masafusion import INVERTED, MIXED, NOISE, MaSaFusion
from attention_edit.host.families import SD1
from attention_edit.host.guider import noise_like

REGION = edits.box()
HEAD = 8
FIRST = 10


def images(model, inversion, control, positive=None, packed=False):
    """The target and the intermediate image, with the prompt of seed 2."""
    patched = engine.install(model, control, inversion, packed)
    patched = engine.pin(patched, inversion, tuple(inversion.schedule))
    stub = torch.tensor([14.6, 0.0])
    sampled = tiny.sample(patched, positive or tiny.prompt(2), tiny.prompt(3), edits.run_start(), stub)
    return sampled, None if control.drawn.empty else control.drawn.of({"samples": sampled})


def attention(q, k, v):
    """Softmax attention written out, heads of the tiny model."""
    q, k, v = (x.unflatten(-1, (-1, HEAD)).transpose(1, 2) for x in (q, k, v))
    return ((q @ k.transpose(-1, -2) / HEAD**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)


@dataclass
class WrittenOut:
    """Algorithms 1 and 5 on a tiny SD1.x, one network call for each prediction of each equation."""

    model: Any
    inversion: Any
    control: MaSaFusion
    positive: Any
    cfg: float = 7.5
    kept: dict[tuple[str, int, str], torch.Tensor] = field(default_factory=dict)
    keep: str = ""
    take: dict[str, str] = field(default_factory=dict)

    def patch(self, index, q, k, v, options, **_):
        own = {"q": q, "k": k, "v": v}
        if self.keep:
            self.kept.update({(self.keep, index, part): x for part, x in own.items()})
        elif index >= FIRST:
            own |= {part: self.kept[whose, index, part] for part, whose in self.take.items()}
        return attention(own["q"], own["k"], own["v"])

    def run(self):
        """The target and the intermediate image (or None), in the latent's own scale."""
        model = self.model.clone()
        for layer in SD1.layers:
            model.set_model_attn1_replace(partial(self.patch, layer.index), *layer.block, layer.depth)
        guider = comfy.samplers.CFGGuider(model)
        guider.inner_set_conds(
            {"positive": self.positive, "negative": tiny.prompt(3), "source": self.inversion.conditioning}
        )
        guider.set_cfg(self.cfg)
        sampler = comfy.samplers.KSAMPLER(self.loop)
        sigmas = torch.tensor(self.inversion.schedule)
        with torch.inference_mode():
            guider.sample(edits.run_start(), edits.run_start(), sampler, sigmas, disable_pbar=True)
        out = model.get_model_object("latent_format").process_out
        scale = (1 + float(sigmas[-1]) ** 2) ** 0.5
        return out(self.target / scale), None if self.image is None else out(self.image / scale)

    def loop(self, model, x, sigmas, extra_args, **_):
        guider, options = model.inner_model, extra_args["model_options"]
        cells = torch.nn.functional.interpolate(
            self.control.region[None].float(), (tiny.SIZE, tiny.SIZE), mode="nearest"
        )

        def ask(prompt, latent, keep="", **take):
            self.keep, self.take = keep, take
            conds = guider.conds[prompt]
            if keep.startswith("source"):
                conds = [{key: value for key, value in cond.items() if key != "control"} for cond in conds]
            timestep = sigma.expand(1)
            return comfy.samplers.calc_cond_batch(guider.inner_model, [conds], latent, timestep, options)[0]

        def guided(prompt, latent, name="", source="", **take):
            """Guidance, each half with its own half of what it takes."""
            halves = []
            for which in (prompt, "negative"):
                half = "u" if which == "negative" else "c"
                taken = {part: f"{whose} {half}" for part, whose in take.items()}
                halves.append(ask(which, latent, f"{name} {half}" if name else "", **taken))
            return halves[1] + self.cfg * (halves[0] - halves[1])

        def everything(whose):
            return {"q": whose, "k": whose, "v": whose}

        fresh = noise_like(x, self.control.seed) * (1 + sigmas[0] ** 2) ** 0.5
        inverted = self.inversion.at(float(sigmas[0]))
        mixed = cells * fresh + (1 - cells) * inverted
        self.image = {NOISE: fresh, MIXED: mixed, INVERTED: inverted}[self.control.begins]
        self.target = mixed if self.control.intermediate else inverted
        if not self.control.intermediate:
            self.image = None
        for sigma, after in pairwise(sigmas):
            source = self.inversion.at(float(sigma))
            ask("source", source, "source c")
            ask("negative", source, "source u")
            take = {"k": "source", "v": "source"}
            if self.image is not None:
                inside = guided("positive", self.image, "image")
                outside = guided("source", self.image, **everything("source"))
                found = cells * inside + (1 - cells) * outside
                take = {"q": "image", "k": "image"}
                self.image = self.image + (self.image - found) / sigma * (after - sigma)
            inside = guided("positive", self.target, **take)
            outside = guided("source", self.target, **everything("source"))
            found = cells * inside + (1 - cells) * outside
            self.target = self.target + (self.target - found) / sigma * (after - sigma)
        return self.target
