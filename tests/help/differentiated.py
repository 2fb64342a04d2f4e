"""What tests of gradients share: models as the host loads them, and runs that differentiate one evaluation."""

from __future__ import annotations

import comfy.samplers
import tiny
import torch
from attention_edit.host.gradients import differentiable, gradient, plain

SIGMA = 2.0


def as_loaded(kind="SD1", dtype=torch.float32):
    """A model as the host's loader node leaves it: made in inference mode."""
    with torch.inference_mode():
        return tiny.tiny_model(kind, dtype=dtype)


class Differentiated(comfy.samplers.Sampler):
    """A run that differentiates the mean square of the prediction by the positive states and by x."""

    def __init__(self, checkpointing=False, during=None):
        self.checkpointing, self.during = checkpointing, during
        self.result = None

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, *_, **__):
        model, conds = model_wrap.inner_model, model_wrap.conds["positive"]
        with differentiable(model, extra_args["model_options"], self.checkpointing) as options:
            conds, x, sigma = plain(conds), plain(latent_image), torch.full((len(latent_image),), SIGMA)
            states = conds[0]["model_conds"]["c_crossattn"].cond.requires_grad_()
            x.requires_grad_()

            def value(x):
                denoised = comfy.samplers.calc_cond_batch(model, [conds], x, sigma, options)[0]
                return denoised.square().mean()

            if self.during is not None:
                self.during(model)
            loss = value(x)
            self.result = (loss.detach(), *gradient(loss, [states, x]))
        return latent_image


def run(model, checkpointing=False, during=None, kind="SD1", control=None):
    sampler = Differentiated(checkpointing, during)
    guider = comfy.samplers.CFGGuider(model)
    positive = tiny.prompt(2, kind)
    if control is not None:
        positive[0][1]["control"] = control
        positive[0][1]["control_apply_to_uncond"] = False
    guider.set_conds(positive, tiny.prompt(3, kind))
    start = tiny.latent(4)
    with torch.inference_mode():
        guider.sample(torch.zeros_like(start), start, sampler, torch.tensor([SIGMA, 0.0]), disable_pbar=True, seed=0)
    return sampler.result


def plain_run(model, kind="SD1"):
    sigmas = torch.tensor([2.0, 1.0, 0.5])
    return tiny.sample(model, tiny.prompt(2, kind), tiny.prompt(3, kind), tiny.latent(4), sigmas)
