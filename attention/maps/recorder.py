"""Recording of attention maps while a model samples or inverts, without changing anything.

What is recorded are the target's own maps, softmax(q k): what the network would do by itself at that point, before
other controls rewrite it. Sums are kept and not maps of single steps, so memory does not grow with the steps.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field

from torch import Tensor

from ...host.families import Family, Layer
from ...host.models import CELL
from ..engine.acts import Act, How, Site, Window
from ..engine.call import AttentionCall
from ..engine.checks import check_target_prompt
from ..engine.control import Control
from ..engine.layers import ALL, MIDDLE, layers_of
from ..engine.moment import Moment
from ..engine.results import Results
from ..words.prompt import Prompt
from .seen import itself_of, words_of
from .sizes import add_tokens

SIZES = {"full": 1, "half": 2, "quarter": 4, "eighth": 8}
"""Layers by the side of their feature maps, as a share of the latent's: `Layer.scale` by name."""


@dataclass(frozen=True, eq=False)
class MeanMap:
    """The mean of a kind of map over layers of one size, steps and heads.

    Attributes:
        values: (B, N, T) for text tokens or (B, N, N) for image tokens, float32 on the CPU.
        shape: (h, w) of the feature map, h * w = N.
        layers: how many layers it is made of.
    """

    values: Tensor
    shape: tuple[int, int]
    layers: int


@dataclass(frozen=True, eq=False)
class Recording:
    """The maps of one complete run.

    Attributes:
        columns: text positions that the T columns of cross maps stand for.
        cross: mean cross-attention map by scale.
        own: mean self-attention map by scale.
        size: (h, w) of the latent. cell: pixels along a side of its cells.
    """

    columns: tuple[int, ...]
    cross: dict[int, MeanMap]
    own: dict[int, MeanMap]
    size: tuple[int, int]
    cell: int = CELL

    @property
    def pixels(self) -> tuple[int, int]:
        """(H, W) of the image."""
        return self.size[0] * self.cell, self.size[1] * self.cell


class AttentionMaps(Results[Recording]):
    """Where a recorder leaves its maps, those of each run for themselves."""

    def __init__(self, prompt: Prompt) -> None:
        super().__init__(
            "No attention maps have been recorded yet. Connect Record Attention Maps' model to the sampler or "
            "DDIM Inversion, and that node's output to the input 'after', so that it runs first."
        )
        self.prompt = prompt

    @property
    def recording(self) -> Recording:
        """The last run's maps; ValueError if nothing was recorded."""
        return self.of()


class _Sum:
    """A running sum of maps, at the largest size that they have had."""

    def __init__(self, values: Tensor, shape: tuple[int, int], layer: int) -> None:
        self.total, self.shape, self.count, self.layers = values, shape, 1, {layer}

    def add(self, call: AttentionCall, values: Tensor, own: bool) -> None:
        self.total, self.shape = add_tokens(self.total, self.shape, values, call.shape, own)
        self.count += 1
        self.layers.add(call.layer.index)

    def copied(self) -> _Sum:
        """The same, to be added to."""
        found = copy(self)
        found.total, found.layers = self.total.clone(), set(self.layers)
        return found

    def mean(self) -> MeanMap:
        return MeanMap((self.total / self.count).cpu(), self.shape, len(self.layers))


Sums = dict[tuple[Site, int], _Sum]
"""What one run has recorded so far, by site and scale."""


@dataclass(frozen=True, eq=False)
class RecordMaps(Control):
    """Records maps of the conditional rows.

    Attributes:
        maps: where they go.
        cross_scales: `Layer.scale` of the layers whose cross-attention is recorded, for all words of the prompt.
        self_scales: the same for self-attention.
        start, end: share of the steps, counted from the noisy end, between which it records.
        blocks: which of these layers, a rule of `layers.layers_of`; all maps of a transformer have one size.
    """

    maps: AttentionMaps
    cross_scales: tuple[int, ...] = (4,)
    self_scales: tuple[int, ...] = ()
    start: float = 0.0
    end: float = 1.0
    blocks: str = ALL
    name = "Record Attention Maps"
    on_joint = True
    columns: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", self.maps.prompt.content)

    def acts_on(self, family: Family) -> tuple[Act, ...]:
        window, cross = Window(self.start, self.end), self.cross_scales if self.columns else ()
        sites = ((Site.SELF, self.self_scales, self.look_at_itself), (Site.CROSS, cross, self.look_at_words))
        return tuple(
            Act(site, self._layers(family, scales), during=window, do=do, how=How.LOOKS) for site, scales, do in sites
        )

    def _layers(self, family: Family, scales: tuple[int, ...]) -> tuple[Layer, ...]:
        return tuple(layer for layer in layers_of(family, self.blocks) if layer.scale in scales)

    def begin(self, run: Moment) -> Sums:
        """Refuse a window that holds no step, and a prompt that is not the one that is read."""
        check_target_prompt(run, self.maps.prompt, self.name)
        if not Window(self.start, self.end).steps_of(run):
            raise ValueError(
                f"Record Attention Maps is to record from {self.start:g} to {self.end:g} of {run.steps} steps, which "
                "is no step at all. Lower its start or raise its end."
            )
        return {}

    def resumed(self, run: Moment, state: Sums, before: Sums | None) -> Sums:
        """What was recorded before counts, where the same recorder did."""
        return state if before is None else {key: total.copied() for key, total in before.items()}

    def look_at_itself(self, call: AttentionCall) -> None:
        """Add this layer's self-attention map of the conditional rows."""
        chunk = self._prompted(call)
        if chunk is not None:
            self._add(call, Site.SELF, itself_of(call, chunk))

    def look_at_words(self, call: AttentionCall) -> None:
        """Add this layer's maps of the prompt's words, of the conditional rows."""
        chunk = self._prompted(call)
        if chunk is not None:
            self._add(call, Site.CROSS, words_of(call, chunk, self.columns))

    def _prompted(self, call: AttentionCall) -> int | None:
        chunks = [i for i, conditional in enumerate(call.conditional) if conditional]
        if len(chunks) > 1:
            raise ValueError(
                f"The sampler has {len(chunks)} positive conditionings; maps can be recorded of one prompt. Connect "
                "the conditioning of Prompt with Words alone."
            )
        return chunks[0] if chunks else None

    def _add(self, call: AttentionCall, site: Site, values: Tensor) -> None:
        key = (site, call.layer.scale)
        if key in call.state:
            call.state[key].add(call, values, own=site is Site.SELF)
        else:
            call.state[key] = _Sum(values, call.shape, call.layer.index)

    def finish(self, run: Moment, state: Sums, latent: Tensor) -> None:
        """Leave the means, under the latent that the run ended with."""
        means = {
            site: {scale: total.mean() for (of, scale), total in state.items() if of is site}
            for site in (Site.CROSS, Site.SELF)
        }
        found = Recording(self.columns, means[Site.CROSS], means[Site.SELF], run.size, run.family.cell)
        self.maps.keep(latent, found)


def sizes_of(family: Family) -> str:
    """The names of the sizes that a family has layers of, to be read."""
    there = {layer.scale for layer in family.layers}
    return ", ".join(name for name, scale in SIZES.items() if scale in there)


def recorder(
    prompt: Prompt,
    family: Family,
    cross: tuple[int, ...],
    own: tuple[int, ...],
    start: float,
    end: float,
    blocks: str = MIDDLE,
) -> RecordMaps:
    """A recorder with a place of its own for the maps.

    Args:
        cross, own: scales of the layers whose cross- and self-attention is recorded. A transformer's maps have one
            size; where any are asked for, they are recorded.
        blocks: which of a transformer's blocks, a rule of `layers.layers_of`; not read for UNets.

    Raises:
        ValueError: nothing to record, the family has no layer of a size that was asked for, or a rule does not fit it.
    """
    if family.joint:
        size = (family.layers[0].scale,)
        cross, own = (size if scales else () for scales in (cross, own))
        layers_of(family, blocks)
    there = {layer.scale for layer in family.layers}
    missing = [name for name, scale in SIZES.items() if scale in (*cross, *own) and scale not in there]
    if missing:
        raise ValueError(
            f"{family} has no attention layers of {' or '.join(missing)} size; it has {sizes_of(family)}. Choose "
            "one of these in Record Attention Maps."
        )
    if not prompt.content and not own:
        raise ValueError(
            "The prompt is empty, so it has no words whose maps could be recorded. Write a caption into Prompt with "
            "Words, or record self-attention."
        )
    return RecordMaps(AttentionMaps(prompt), cross, own, start, end, blocks if family.joint else ALL)
