"""Dynamic Prompt Learning's inversion (Algorithm 1): learned nouns and a null text for every step."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ....host.conditioning import Conditioning, encoded_alike, source_conditioning
from ....host.cost import Cost, measured
from ....host.families import Family, family_of
from ....host.gradients import for_gradients, plain
from ....host.guider import cfg_guider, run_sampler
from ....host.marks import KEY
from ....host.models import latent_of
from ....host.remarks import Kind, remark
from ....host.text_encoder import LearnableText, learnable
from ....inversion.improvement import Found, Improvement
from ....inversion.learned import LearnedText, without_learned
from ....inversion.null_text import Step
from ....inversion.reconstruct import relative_errors
from ....inversion.record import Inversion
from ...engine.install import install
from ...maps.probabilities import OBJECT_SCALE
from ...masks.cells import as_mask, check_aspect, for_batch, resize
from ...words.prompt import Prompt
from .background import Clustering, background_regions
from .learn import Learned, Task
from .learner import NAME, Learner, Look
from .nouns import Nouns, find_nouns
from .plot import losses_picture
from .settings import RELEASED, Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LearnedStep:
    """What was found for one step: per image, the nouns' learning and the null text's."""

    learned: tuple[Learned, ...]
    null: tuple[Step, ...]


@dataclass(frozen=True)
class DynamicPromptLearning(Improvement):
    """Learns the nouns of an inversion anew for each step, and a null text with them.

    The inversion is one of the prompt, and the negative prompt the null text to begin with: the empty one. The found
    inversion's errors are |z - z*| / |z*| of guided sampling with both, noisy to clean; its steps are `LearnedStep`,
    noisy to clean; its cost counts calls that ended early as whole ones.

    Attributes:
        clip: the host CLIP that encoded the source prompt; the prompt's states tell it, so the cache's name has none.
        prompt: the source prompt. nouns: of it, with commas between, such as "cat, dog" or "cat#2".
        settings: how it learns.
        background: MASK (M, H, W), 1 on the background; None finds it by `clustering`.

    Raises:
        ValueError: when called, another prompt than the inversion's, nouns that are not in the prompt, a mask of
            another picture, quantised weights, a negative prompt of several parts or none.
    """

    name: ClassVar[str] = NAME
    clip: InitVar[Any]
    prompt: Prompt
    nouns: str
    settings: Settings = RELEASED
    background: Tensor | None = None
    clustering: Clustering = field(default_factory=Clustering)

    def __post_init__(self, clip: Any) -> None:
        object.__setattr__(self, "_clip", clip)

    def improve(self, model: Any, inversion: Inversion, negative: Conditioning | None, guidance: float) -> Found:
        """See `Improvement`."""
        clip = self.__dict__["_clip"]
        prompts = source_conditioning(inversion.conditioning), self._null_text(negative)
        nouns = find_nouns(self.prompt, self.nouns)
        text = learnable(clip, self.prompt.text, nouns.positions)
        _check_text(text.encode(text.vectors()), prompts[0], self.prompt)
        masks = self._masks(model, inversion, dict(zip(nouns.names, nouns.places, strict=True)))
        height, width = inversion.latents.shape[-2:]
        shape = (-(-height // OBJECT_SCALE), -(-width // OBJECT_SCALE))
        learners: list[Learner] = []
        looking = install(for_gradients(model, self.settings.checkpointing), Look())
        planned = _plan(self.settings, family_of(model), len(inversion.sigmas) - 1, inversion.batch)
        with measured(looking, NAME, planned) as (counted, cost):
            # The encoder runs between the UNet's calls: the host shall hold both.
            counted.set_additional_models(f"{KEY} text", [clip.patcher])
            for image in range(inversion.batch):
                task = _task(text, nouns, masks[image : image + 1], shape)
                learners.append(self._learner(inversion, image, prompts[1], guidance, cost, task))
                _walk(counted, learners[-1], prompts)
                log.info("%s, image %d: %s", NAME, image + 1, learners[-1].told())
        steps = tuple(
            LearnedStep(tuple(x.learned[i] for x in learners), tuple(x.steps[i] for x in learners))
            for i in range(len(inversion.sigmas) - 1)
        )
        return Found(_put_together(inversion, learners, prompts, guidance, self.prompt), cost, steps)

    def pictures(self, found: Found) -> list[Tensor]:
        """The losses over the steps against their thresholds, one picture for each image."""
        return [losses_picture(of) for of in zip(*(step.learned for step in found.steps), strict=True)]

    @staticmethod
    def _null_text(negative: Conditioning | None) -> Conditioning:
        if negative is None:
            raise ValueError(f"{NAME} begins with the negative prompt; connect an empty prompt.")
        return source_conditioning(negative, f"negative prompt of {NAME}")

    def _learner(
        self, inversion: Inversion, image: int, negative: Conditioning, guidance: float, cost: Cost, task: Task
    ) -> Learner:
        """The walk of one image of the inversion."""
        return Learner(
            replace(inversion, latents=inversion.latents[:, image : image + 1], null_states=None),
            _one_of(negative[0][0], image),
            self.settings.null,
            guidance,
            cost,
            task=task,
            how=self.settings,
        )

    def _masks(self, model: Any, inversion: Inversion, nouns: dict[str, tuple[int, ...]]) -> Tensor:
        """The background (B, H, W) bool."""
        if self.background is None:
            found, _ = background_regions(model, inversion, self.prompt, nouns, self.clustering)
            return torch.stack([region.background() for region in found])
        mask = as_mask(self.background, f"background of {NAME}")
        check_aspect(mask, (inversion.latents.shape[-2], inversion.latents.shape[-1]), f"background of {NAME}")
        return for_batch(mask, inversion.batch, f"background of {NAME}")


def _task(text: LearnableText, nouns: Nouns, mask: Tensor, shape: tuple[int, int]) -> Task:
    """What one image asks; a cell is background where any part of it is (the released code's)."""
    cells = plain(resize(mask, shape, "any").flatten())
    task = Task(text, nouns, cells if cells.any() else None, shape)
    if not task.asks:
        remark(Kind.DOUBTFUL, f"Name another noun: one noun and no background leave nothing to learn for {NAME}.")
    return task


def _one_of(states: Tensor, image: int) -> Tensor:
    """One image's text (1, L, C) float32 of (1 or B, L, C)."""
    return states[min(image, len(states) - 1)][None].detach().float()


def _check_text(states: Tensor, positive: Conditioning, prompt: Prompt) -> None:
    if not encoded_alike(positive[0][0], states):
        raise ValueError(
            f"The prompt is {prompt.text!r}, but the inversion was made with another prompt, or another CLIP than the "
            f"one that is connected. Connect the same CLIP to Prompt with Words and to {NAME}, and Prompt with Words' "
            "conditioning to DDIM Inversion's source."
        )


def _plan(settings: Settings, family: Family, steps: int, batch: int) -> str:
    """The most that it can take, for the log."""
    forward, backward = settings.planned(steps, batch)
    return (
        f"at most {forward} UNet evaluations and {backward} backward, {settings.iterations * steps * batch} of each in "
        f"passes that end at the last map; worth {settings.worth(family, steps, batch):.0f} UNet evaluations"
    )


def _walk(model: Any, learner: Learner, prompts: tuple[Conditioning, Conditioning]) -> None:
    inversion = learner.inversion
    start = latent_of(model, inversion.latents[-1])
    run_sampler(cfg_guider(model, *prompts, learner.guidance), learner, start, inversion.schedule)


def _put_together(
    inversion: Inversion,
    learners: list[Learner],
    prompts: tuple[Conditioning, Conditioning],
    guidance: float,
    prompt: Prompt,
) -> Inversion:
    """The inversion with what was learned for each image, from clean to noisy."""
    positive, negative = prompts
    visited = [inversion.latents[-1]]
    visited += [torch.cat([step.z for step in steps]) for steps in zip(*(x.steps for x in learners), strict=True)]

    def stacked(part: Callable[[Learner, int], Tensor]) -> Tensor:
        numbers = range(len(inversion.sigmas) - 2, -1, -1)
        return torch.stack([torch.cat([part(x, i) for x in learners]).float().cpu() for i in numbers])

    text = learners[0].task.nouns
    vectors = {
        name: stacked(lambda x, i, name=name: text.spread(x.learned[i].rows)[name][None])
        for name in learners[0].learned[0].rows
    }
    learned = LearnedText(stacked(lambda x, i: x.learned[i].states), prompt.ids, text.positions, vectors)
    return replace(
        inversion,
        conditioning=learned.put_on(positive),
        method=f"{inversion.method} + learned {', '.join(text.names)}",
        errors=relative_errors(visited, inversion),
        null_states=stacked(lambda x, i: x.steps[i].states),
        null_options=without_learned(negative[0][1]),
        null_guidance=guidance,
    )
