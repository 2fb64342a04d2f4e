"""INVERSION: everything that an edit needs to know about the source image, as one immutable record."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..host.conditioning import Conditioning
from .steps import scale_of

MATCH = 1e-4
"""Relative difference under which two sigmas are the same noise level (a float32 rounding apart)."""


@dataclass(frozen=True, eq=False)
class Inversion:
    """The trajectory of a source image from clean to noisy.

    Attributes:
        latents: (S, B, C, h, w) float32 on the CPU, z* in the `Scale` of the prediction (DDPM's, or a
            flow's own); latents[0] is the
            image's own scaled latent and latents[-1] the inverted noise.
        sigmas: S noise levels, ascending; sigma = sqrt((1 - alpha) / alpha), of a flow 0 to 1.
        steps: number of DDIM steps by the papers' count (50 for 980 ... 0), or of a flow's steps (S - 1).
        offset: timestep offset of the schedule, 0 or 1; of a flow 0.
        family: name of the model family.
        prediction: "eps", "v" or "flow".
        conditioning: the source prompt's CONDITIONING.
        method: how it was made, for messages and reports.
        null_states: text states (1 or S - 1, 1 or B, L, C), float32 on the CPU, that stand in the negative prompt's
            place; entry i is for the step between levels i and i + 1, one entry is for all steps. None leaves the
            negative prompt as it is.
        null_options: the host's options beside these states (SDXL's pooled output).
        null_guidance: guidance scale that the states were optimised for; None if they go with any.
        errors: what the method measured of itself at every step, for its plot; empty if nothing.
        connected: least and largest noise level of the model, if its schedule was connected, and is not the model's
            own by steps and offset.
        weights: name of the weights and LoRAs that it was made with (`fingerprint.weights_name`); empty if not known.
    """

    latents: Tensor
    sigmas: tuple[float, ...]
    steps: int
    offset: int
    family: str
    prediction: str
    conditioning: Conditioning = field(repr=False)
    method: str = "DDIM inversion"
    null_states: Tensor | None = field(default=None, repr=False)
    null_options: dict[str, Any] = field(default_factory=dict, repr=False)
    null_guidance: float | None = None
    errors: tuple[float, ...] = field(default=(), repr=False)
    weights: str = field(default="", repr=False)
    connected: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Raise ValueError if something is not finite, or a text per step does not go with the trajectory.

        This is where tensors that a method has made are looked at once; `file_format` holds files to more.
        """
        if not torch.isfinite(self.latents).all():
            raise ValueError(
                "Invert with more precise weights (start ComfyUI with --fp32-unet or --force-upcast-attention) or "
                f"lower the guidance: the latents of {self.method} hold NaN or infinite values."
            )
        steps = len(self.sigmas) - 1
        for name, states in self._step_texts().items():
            shape = tuple(states.shape)
            if len(shape) != 4 or shape[0] not in (1, steps) or shape[1] not in (1, self.batch):
                raise ValueError(
                    f"The {name} text has shape {shape}, but {steps} steps of {self.batch} image(s) need "
                    f"({steps} or 1, {self.batch} or 1, tokens, channels)."
                )
            if not torch.isfinite(states).all():
                raise ValueError(
                    f"Connect another prompt or lower the learning rate: the {name} text of {self.method} holds NaN or "
                    "infinite values."
                )

    def _step_texts(self) -> dict[str, Tensor]:
        """Text states of steps, by the words in which messages call them."""
        texts = {"null": self.null_states, "source": getattr(self, "text_states", None)}
        return {name: states for name, states in texts.items() if states is not None}

    @property
    def batch(self) -> int:
        """Number of source images."""
        return self.latents.shape[1]

    @property
    def schedule(self) -> list[float]:
        """Sigmas for a sampler, noisy to clean."""
        return list(reversed(self.sigmas))

    def describe(self) -> str:
        """One line that tells the schedule, for messages."""
        schedule = "connected sigmas" if self.connected else f"offset {self.offset}"
        return (
            f"{self.method}, {self.steps} steps, {schedule}, "
            f"sigma {self.sigmas[-1]:.3f} to {self.sigmas[0]:.3f} "
            f"({self.family}, {self.prediction} prediction, {self.batch} image(s) of "
            f"{self.latents.shape[-1]}x{self.latents.shape[-2]})"
        )

    def level(self, sigma: float) -> int | None:
        """Index of the stored latent at this sigma, or None between stored ones."""
        right = bisect_left(self.sigmas, sigma)
        for i in (right - 1, right):
            if 0 <= i < len(self.sigmas) and abs(self.sigmas[i] - sigma) <= MATCH * self.sigmas[i]:
                return i
        return None

    def step(self, sigma: float) -> int:
        """Number of the DDIM step that is under way at this sigma, 0 for the noisiest, by the papers' count."""
        above = sum(s >= sigma * (1 - MATCH) for s in self.sigmas)
        return max(0, above - 1)

    def at(self, sigma: float, latents: Tensor | None = None) -> Tensor:
        """The source latent at a noise level, in the sampler's scale: x = z* sqrt(1 + sigma^2), of a flow z*.

        Exactly the stored latent at stored levels. Between two of them x is linear in sigma, which is where
        DDIM's own ordinary differential equation goes: one step's x0 and eps are constant.

        Args:
            sigma: noise level within the stored range.
            latents: the trajectory's, where they lie on another device.

        Returns:
            (B, C, h, w) float32, on the latents' device.

        Raises:
            ValueError: sigma lies outside the trajectory.
        """
        latents = self.latents if latents is None else latents
        i = self.level(sigma)
        if i is not None:
            return self._sampler_scale(latents, i)
        if not self.sigmas[0] < sigma < self.sigmas[-1]:
            raise ValueError(
                f"The sampler asks for the source at sigma {sigma:.4f}, but the inversion holds {self.describe()}. "
                "Sample on the inversion's own schedule: connect Edit Setup's model or sigmas."
            )
        right = bisect_left(self.sigmas, sigma)
        low, high = self.sigmas[right - 1], self.sigmas[right]
        ends = self._sampler_scale(latents, right - 1), self._sampler_scale(latents, right)
        return torch.lerp(*ends, (sigma - low) / (high - low))

    def clean_at(self, sigma: float, latents: Tensor | None = None) -> Tensor:
        """x0 (B, C, h, w) of the trajectory's DDIM step under way at this sigma: where its line meets sigma 0.

        Args:
            latents: the trajectory's, where they lie on another device.
        """
        latents = self.latents if latents is None else latents
        right = self.level(sigma)
        if right is None:
            right = min(bisect_left(self.sigmas, sigma), len(self.sigmas) - 1)
        right = max(right, 1)
        low, high = self.sigmas[right - 1], self.sigmas[right]
        start, end = self._sampler_scale(latents, right - 1), self._sampler_scale(latents, right)
        return start - (end - start) * (low / (high - low))

    @property
    def null_conditioning(self) -> Conditioning | None:
        """The null text as CONDITIONING, with the states of the cleanest step; None without one."""
        return None if self.null_states is None else [[self.null_states[0], dict(self.null_options)]]

    @property
    def null_steps(self) -> int:
        """How many steps have a null text of their own: 0 without one, 1 if it is the same in all."""
        return 0 if self.null_states is None else len(self.null_states)

    def null_at(self, sigma: float) -> Tensor | None:
        """The null text (1 or B, L, C) of the DDIM step under way at this sigma; None without one."""
        return None if self.null_states is None else self.null_states[min(self.pair(sigma), len(self.null_states) - 1)]

    def pair(self, sigma: float) -> int:
        """Number of the two levels that the DDIM step under way at this sigma is between, 0 for the cleanest."""
        right = self.level(sigma)
        if right is None:
            right = bisect_left(self.sigmas, sigma)
        return min(max(right - 1, 0), len(self.sigmas) - 2)

    def _sampler_scale(self, latents: Tensor, i: int) -> Tensor:
        return scale_of(self.prediction).to_sampler(latents[i], self.sigmas[i])

    def check_levels(self, model_sampling: Any) -> None:
        """Raise ValueError if the noise levels are not those of a model's table, as the host keeps it."""
        table: Tensor | None = getattr(model_sampling, "sigmas", None)
        if table is None or self.prediction == "flow":  # a flow has every level between 0 and 1
            return
        levels, table = torch.tensor(self.sigmas, dtype=torch.float64), table.detach().double().cpu()
        if self.connected:  # a scheduler's levels lie between the table's, which is told by its ends then
            ends = torch.tensor(self.connected, dtype=torch.float64)
            levels, table = torch.cat([ends, levels[levels > table.max()]]), table[[0, -1]]
        distance = (levels[:, None] - table).abs().amin(1)
        foreign = levels[distance > MATCH * levels].tolist()
        if foreign:
            raise ValueError(
                "Invert the image with the model that is sampled, its sampling patches (ModelSamplingDiscrete, zsnr, "
                f"LCM) included, or take them off the edited model: sigma {foreign[-1]:.4f} of the inversion "
                f"({self.describe()}) is none of its noise levels ({table.min():.4f} to {table.max():.4f})."
            )

    def check_schedule(self, sigmas: list[float]) -> None:
        """Raise ValueError unless every noise level that a run starts a step from is a stored one."""
        foreign = [s for s in sigmas if s > 0 and self.level(s) is None]
        if foreign:
            raise ValueError(
                f"The sampler's schedule ({len(sigmas) - 1} steps, sigma {sigmas[0]:.3f} to {sigmas[-1]:.3f}) is not "
                f"the inversion's ({self.describe()}): sigma {foreign[0]:.4f} is not on it. Connect Edit Setup's "
                "model (for KSampler) or its sigmas (for SamplerCustomAdvanced), or invert with that schedule."
            )

    def check_model(self, family: str, prediction: str) -> None:
        """Raise ValueError if the trajectory was made with another kind of model."""
        if (family, prediction) != (self.family, self.prediction):
            raise ValueError(
                f"This inversion was made with an {self.family} model ({self.prediction} prediction), but the model "
                f"to edit with is {family} ({prediction} prediction). Invert the image again with this model."
            )
