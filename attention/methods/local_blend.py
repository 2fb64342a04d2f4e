"""Local blend (Prompt-to-Prompt): where the named words attend, the edit; elsewhere the source's own trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from ...host.families import Family
from ..engine.acts import Act, How, Site, Window
from ..engine.after_step import SourceAfterStep
from ..engine.call import AttentionCall
from ..engine.checks import check_source_prompt, check_target_prompt
from ..engine.control import missing_steps
from ..engine.moment import Moment
from ..maps.probabilities import picked
from ..maps.seen import object_layers, source_words_of, words_of
from ..maps.sizes import alike
from ..words.alignment import find_word, find_words
from ..words.prompt import Prompt


@dataclass
class _Sums:
    """Maps added up over layers and steps by name, (B, h, w) float32."""

    maps: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, values: Tensor) -> None:
        kept, values = alike([self.maps[name], values]) if name in self.maps else (0.0, values)
        self.maps[name] = values + kept


@dataclass(frozen=True, eq=False)
class LocalBlend(SourceAfterStep):
    """Local blend.

    Attributes:
        source, target: the prompts, as for Prompt-to-Prompt.
        source_words, target_words: what is edited, in each prompt.
        subtract: words of either prompt whose places are kept.
        start: share of the steps after which blending begins (0.2: from the 11th of 50).
        threshold: of the words' map divided by its largest value; subtract_threshold: the same for `subtract`.
    """

    source: Prompt
    target: Prompt
    source_words: Sequence[str]
    target_words: Sequence[str]
    subtract: Sequence[str] = ()
    start: float = 0.2
    threshold: float = 0.3
    subtract_threshold: float = 0.3
    name = "Local Blend"
    on_joint = True

    def columns(self) -> dict[str, tuple[int, ...]]:
        """Token positions by side and purpose.

        Raises:
            ValueError: no words to blend, or one that is not in its prompt.
        """
        if not self.source_words or not self.target_words:
            raise ValueError("Local Blend needs a word of the source prompt and a word of the target prompt.")
        found = {
            "source": find_words(self.source, self.source_words),
            "target": find_words(self.target, self.target_words),
        }
        if self.subtract:
            kept = [_either(self.source, self.target, word) for word in self.subtract]
            found["source kept"] = tuple(p for places, _ in kept for p in places)
            found["target kept"] = tuple(p for _, places in kept for p in places)
        return found

    def begin(self, run: Moment) -> _Sums:
        """Refuse prompts that the image was not inverted with, or that is not sampled with."""
        check_source_prompt(run, self.source, self.name)
        check_target_prompt(run, self.target, self.name)
        return _Sums()

    def resumed(self, run: Moment, state: _Sums, before: _Sums | None) -> _Sums:
        """The maps of the steps before count on."""
        if before is None:
            raise missing_steps(run, self.name, "the attention maps")
        return _Sums(dict(before.maps))

    def acts_on(self, family: Family) -> tuple[Act, ...]:
        return (Act(Site.CROSS, object_layers(family), do=self.look, reads="qk", when=self.acts, how=How.LOOKS),)

    def acts(self, run: Moment, state: _Sums) -> bool:
        return run.inversion is not None and self.start < 1

    def look(self, call: AttentionCall) -> None:
        """Add up the maps as the other controls rewrite them."""
        if not any(call.conditional):
            return
        chunk = call.conditional.index(True)
        before, after = self.source.length, self.target.length
        source = source_words_of(call, chunk, range(before), before)
        target = words_of(call, chunk, range(after), after)
        # What the others make of a map is linear in it, so that the mean over heads stands for each of them.
        target = call.rewrite(call, source[:, None], target[:, None])[:, 0]
        for name, positions in self.columns().items():
            side = source if name.startswith("source") else target
            call.state.add(name, picked(side, positions).sum(-1).unflatten(1, call.shape))

    def first(self, run: Moment, state: _Sums) -> int:
        """Of 50 steps the 11th."""
        return Window(self.start, released=True).first(run.steps)

    def mask(self, run: Moment, state: _Sums, latent: Tensor) -> Tensor | None:
        """(B, 1, h, w), 1 where either prompt's words attend and no subtracted word does; None before any step."""
        sums = state.maps
        if not sums:
            return None
        size = (latent.shape[-2], latent.shape[-1])
        chosen = _above(sums["source"], size, self.threshold, 3) | _above(sums["target"], size, self.threshold, 3)
        if self.subtract:
            for name in ("source kept", "target kept"):
                chosen = chosen & ~_above(sums[name], size, self.subtract_threshold, 1)
        return chosen[:, None].to(latent)


def _either(source: Prompt, target: Prompt, word: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A word's positions in each prompt; it has to be in one of them."""
    found, errors = [], []
    for prompt in (source, target):
        try:
            found.append(find_word(prompt, word))
        except ValueError as error:
            found.append(())
            errors.append(error)
    if len(errors) == len(found):
        raise errors[0]
    return found[0], found[1]


def _above(total: Tensor, size: tuple[int, int], threshold: float, pool: int) -> Tensor:
    """Where a sum of maps (B, h, w), spread by a pool x pool maximum, is above a share of its largest value."""
    spread = F.max_pool2d(total[:, None], pool, stride=1, padding=pool // 2)
    fine = F.interpolate(spread, size, mode="nearest")[:, 0]
    return fine > threshold * fine.amax((1, 2), keepdim=True)
