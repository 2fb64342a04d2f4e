"""The host's guiders and samplers, as the pack runs them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from .conditioning import check_readable, check_text


def is_guided(guider: Any) -> bool:
    """Whether a host's guider runs the unconditional half."""
    if hasattr(guider, "cfg1"):  # three prompts, each with a scale
        return True
    return getattr(guider, "cfg", 1.0) != 1.0 or guider.model_options.get("disable_cfg1_optimization", False)


def sampler_name(sampler: Any) -> str:
    """The host's name of a sampler, such as "euler"; of one that is none of its own, its type's."""
    name: str = getattr(getattr(sampler, "sampler_function", None), "__name__", type(sampler).__name__)
    return name.removeprefix("sample_").removesuffix("_function")


def cfg_guider(model: Any, positive: Any, negative: Any, guidance: float) -> comfy.samplers.CFGGuider:
    """The host's guider for positive and negative CONDITIONING (None: the positive one) at a guidance scale.

    Raises:
        ValueError: a prompt that the model cannot read, or that would draw NaN.
    """
    _check_prompt(model, positive, "source prompt")
    _check_prompt(model, negative or [], "negative prompt")
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative if negative is not None else positive)
    guider.set_cfg(guidance)
    return guider


def _check_prompt(model: Any, conditioning: Any, name: str) -> None:
    check_text(conditioning, name)
    check_readable(model, conditioning, name)


class DifferenceGuider(comfy.samplers.CFGGuider):
    """A host guider whose prediction is the positive prompt's minus the negative one's; the host batches the two."""

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: dict[str, Any] | None = None, seed: int | None = None
    ) -> Tensor:
        """Difference (B, C, h, w) of the predicted clean latents, that of the noise up to a factor."""
        conds = [self.conds["positive"], self.conds["negative"]]
        one, other = comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options or {})
        return one - other


@dataclass(frozen=True, eq=False)
class HostRun:
    """What the host gives a sampler for one run: the model is loaded, and the start is in the network's scale.

    Attributes:
        guider: the host's guider, with the processed conditionings in `conds` and the model as `inner_model`.
        sigmas: the levels (S,), in the order of the walk.
        start: (B, C, h, w), what `run_sampler` was given, in the network's scale and on its device.
        options: the run's model options. seed: what the host seeds the run with.
        callback: the host's progress bar and preview, if there is any.
        mask: (B or 1, C or 1, h, w), the latent's noise mask: the share of what the run makes; None for all.
    """

    guider: Any
    sigmas: Tensor
    start: Tensor
    options: dict[str, Any]
    seed: int | None
    callback: Callable[[int, Tensor, Tensor, int], None] | None
    mask: Tensor | None = None

    def kept(self, made: Tensor, there: Tensor) -> Tensor:
        """What the run has made (B, C, h, w), and outside of the mask what is there, bit for bit."""
        if self.mask is None:
            return made
        return torch.where(self.mask > 0, there + self.mask * (made - there), there)

    def denoised(self, x: Tensor, sigma: float) -> Tensor:
        """The guided prediction of the clean latent (B, C, h, w) for x at sigma, in the sampler's scale.

        Raises:
            InterruptProcessingException: the user has cancelled.
        """
        comfy.model_management.throw_exception_if_processing_interrupted()
        return self.guider(x, x.new_full((len(x),), sigma), self.options, self.seed)

    def denoised_by(self, positive: Any, guidance: float) -> Callable[[Tensor, float], Tensor]:
        """The same for a source prompt's CONDITIONING and scale, with the guider's own negative prompt.

        Raises:
            ValueError: a prompt that the model cannot read, or that would draw NaN.
        """
        _check_prompt(self.guider.model_patcher, positive, "source prompt")
        model, x = self.guider.inner_model, self.start
        given = {"positive": comfy.sampler_helpers.convert_cond(positive)}
        conds = comfy.samplers.process_conds(model, x, given, x.device, x, None, self.seed)["positive"]
        negative = self.guider.conds.get("negative") or conds

        def denoised(z: Tensor, sigma: float) -> Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            level = z.new_full((len(z),), sigma)
            return comfy.samplers.sampling_function(
                model, z, level, negative, conds, guidance, self.options, seed=self.seed
            )

        return denoised

    def evaluate(self, conds: list[dict[str, Any]], x: Tensor, sigma: float, options: dict[str, Any]) -> Tensor:
        """The prediction (B, C, h, w) for x with processed conditionings alone, without the guider's wrappers."""
        timestep = x.new_full((len(x),), sigma)
        return comfy.samplers.calc_cond_batch(self.guider.inner_model, [conds], x, timestep, options)[0]

    def show(self, number: int, denoised: Tensor, x: Tensor, total: int | None = None) -> None:
        """Move the progress bar and the preview to a step.

        Args:
            number: of the step, from 0.
            denoised, x: (B, C, h, w), what the preview shows, and the latent that it was made of.
            total: number of steps; one per level after the first if None.
        """
        if self.callback is not None:
            self.callback(number, denoised, x, len(self.sigmas) - 1 if total is None else total)


class OwnSampler(comfy.samplers.Sampler, ABC):
    """A run of ours in a sampler's place, so that the host loads, offloads, previews and cancels.

    A subclass writes `run`, and keeps what it finds on itself.
    """

    @abstractmethod
    def run(self, host: HostRun) -> Tensor:
        """Do the work; returns a latent (B, C, h, w), which the host's `sample` hands back."""

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callable[..., None] | None,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        """The host's Sampler interface."""
        if latent_image is None:
            raise ValueError("Connect VAE Encode's latent: this run starts from an image, and the host gave it none.")
        options, seed = extra_args["model_options"], extra_args["seed"]
        return self.run(HostRun(model_wrap, sigmas, latent_image, options, seed, callback, denoise_mask))


def noise_like(samples: Tensor, seed: int, batch_index: list[int] | None = None) -> Tensor:
    """The noise (B, C, h, w) that the host's samplers make of a seed."""
    noise = comfy.sample.prepare_noise(samples, seed, batch_index)
    if not isinstance(noise, Tensor):
        raise ValueError("Connect the latent of one image or batch: this one is nested, of sound or video.")
    return noise


def run_sampler(
    guider: comfy.samplers.CFGGuider,
    sampler: OwnSampler,
    start: Tensor,
    sigmas: list[float],
    steps: int | None = None,
    seed: int = 0,
) -> None:
    """Run a sampler of ours under a guider, with the host's progress bar and preview.

    Args:
        start: (B, C, h, w) as a LATENT socket carries it.
        sigmas: the levels, in the order of the walk.
        steps: of the progress bar; one per level after the first if None.
        seed: what the host seeds the run with.
    """
    guider.sample(
        torch.zeros_like(start),
        start,
        sampler,
        torch.tensor(sigmas),
        callback=latent_preview.prepare_callback(guider.model_patcher, steps or len(sigmas) - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
