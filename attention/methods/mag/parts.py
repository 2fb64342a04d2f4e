"""What MAG-Edit is told of the words of one place (Algorithm 1, Eq 3): one part of the guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ....host.families import Family, Layer
from ....host.marks import KEY
from ...engine.moment import Moment, savable
from ...engine.reading import Maps
from ...masks.cells import for_batch, resize, selecting
from ...words.alignment import find_word
from ...words.lines import split_words
from ...words.prompt import Prompt
from .constraints import TOKEN, Constraint, Word, evaluate
from .curve import Curve, Point

PUBLISHED_SCALE = 2.5
NEGATIVE_SCALE = 5.5
"""The released code's constants: the update scale, and the one left over for negative words."""


def look_up(prompt: Prompt, words: str) -> tuple[Word, ...]:
    """Positions of words separated by commas, all places where each stands or, as "cat#2", the second.

    Raises:
        ValueError: no words, or one that is not in the prompt; the message lists the prompt's.
    """
    named = split_words(words)
    if not named:
        raise ValueError(f"MAG-Edit needs words of the edit's prompt; it has: {', '.join(prompt.words) or 'none'}.")
    return tuple(find_word(prompt, word) for word in named)


def drawn(mask: Tensor) -> Tensor:
    """A MASK socket's tensor as (M, H, W) bool.

    Raises:
        ValueError: of a wrong shape, or one of its masks selects nothing.
    """
    return selecting(
        mask, "mask of MAG-Edit", "Draw the place of the edit in Load Image's mask editor, or connect a segmentation"
    )


@dataclass(frozen=True, eq=False)
class Negative:
    """Words to go away from, in a prompt of their own (Eq 3); no other control acts on that prompt.

    Attributes:
        words: positions in that prompt.
        conditioning: the prompt.
        weight: lambda_ng against 1 for the new words.
    """

    words: tuple[Word, ...]
    conditioning: list[Any]
    weight: float = NEGATIVE_SCALE / PUBLISHED_SCALE

    @classmethod
    def of(cls, words: str, conditioning: list[Any] | None, prompt: Prompt | None, weight: float) -> Negative | None:
        """From what a node is given; None without words.

        Raises:
            ValueError: words without their prompt, or a word that is not in it.
        """
        if not words.strip():
            return None
        if conditioning is None or prompt is None:
            raise ValueError(
                f"MAG-Edit shall go away from {words!r}, but has no prompt with these words. Connect both outputs of a "
                "Prompt with Words to its negative and negative_prompt."
            )
        return cls(look_up(prompt, words), conditioning, weight)


@dataclass(frozen=True, eq=False)
class Part:
    """Words that shall appear under a mask, and how they are guided there.

    Attributes:
        words: positions of each new word in the target prompt.
        mask: (M, H, W) bool, where they shall appear.
        constraint: token ratio (keeps structure) or spatial ratio (changes shape).
        weight: this part's share of the guidance, beside those of others.
        scale: s; the update of the latent z is s sigma times the gradient.
        iterations: updates per step, MAX_IT.
        start, end: share of the steps between which it acts (the first 25 of 50).
        gain: leave a step's iterations when one raises the share of attention by less than this part of it; 0 never.
        detail: side of the latent divided by the side of the maps that are read (4: 16 x 16 at 512 pixels).
        negative: words to go away from.
        blend: share of the steps after which the source's latent is kept outside the mask.
        checkpointing: less memory for a longer way back.
        curve: filled by the run.
        prompt: the target prompt, to tell when another one is sampled with.
    """

    words: tuple[Word, ...]
    mask: Tensor
    constraint: Constraint = TOKEN
    weight: float = 1.0
    scale: float = PUBLISHED_SCALE
    iterations: int = 15
    start: float = 0.0
    end: float = 0.5
    gain: float = 0.0
    detail: int = 4
    negative: Negative | None = None
    blend: float = 0.7
    checkpointing: bool = False
    curve: Curve = field(default_factory=Curve, repr=False)
    prompt: Prompt | None = None

    def layers(self, family: Family) -> tuple[Layer, ...]:
        """Those whose maps are read."""
        return tuple(layer for layer in family.layers if layer.scale == self.detail)

    @property
    def negative_role(self) -> str:
        """Key of the negative words' prompt among the guider's conditionings."""
        return f"{KEY}_mag_{id(self)}"

    @property
    def guides(self) -> bool:
        """Whether it has any effect; without one the run is what it would be without it."""
        return self.iterations > 0 and self.scale > 0 and self.weight > 0

    def cells(self, shape: tuple[int, ...]) -> Tensor:
        """The mask on a feature map: (M, h, w) bool. Nearest as released; one that would vanish is kept."""
        return resize(self.mask, (shape[-2], shape[-1]))

    def loss(self, run: Moment, maps: Maps, words: Sequence[Word]) -> tuple[Tensor, Tensor]:
        """The constraint's loss and ratio, (B,) each, on the layers that this part reads."""
        layers = [layer.index for layer in self.layers(run.family)]
        found = [maps[index] for index in layers]
        expected = self.prompt.length if self.prompt is not None and words is self.words else None
        _check_length(found[0].shape[-1], max(max(word) for word in words), expected)
        state: Guided = run.states[self]
        masks = [state.cached((a.shape[2], a.device), lambda a=a: self._places(run, a)) for a in found]
        return evaluate(self.constraint, found, masks, words)

    def _places(self, run: Moment, attention: Tensor) -> Tensor:
        """The mask on a map's image tokens: (B, N) bool."""
        height, width = (-(-side // self.detail) for side in run.size)
        cells = for_batch(self.cells((height, width)), attention.shape[0], "mask of MAG-Edit")
        return cells.flatten(1).to(attention.device)


@dataclass
class Guided:
    """A part in one run.

    Attributes:
        last: the last noise level that is guided, 0 if none is.
        points: of its curve.
        masks: the mask as maps or latents need it, by what they are.
    """

    last: float
    points: list[Point]
    masks: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)

    def cached(self, key: tuple[Any, ...], make: Callable[[], Tensor]) -> Tensor:
        """What `make` gives, made once."""
        if key not in self.masks:
            self.masks[key] = savable(make)
        return self.masks[key]


def _check_length(given: int, last: int, expected: int | None) -> None:
    if last >= given or expected not in (None, given):
        raise ValueError(
            f"The prompt that MAG-Edit reads has {given} text tokens, but its words were looked up in one of "
            f"{expected or 'more'}. Connect both outputs of one Prompt with Words: its prompt to MAG-Edit and its "
            "conditioning to the sampler."
        )
