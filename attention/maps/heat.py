"""From recorded cross-attention maps to heat maps and masks. Pure functions; maps are float32 on the CPU."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..words.prompt import Prompt
from .recorder import SIZES, MeanMap, Recording
from .sizes import resize_maps

MASK_RULES = ("threshold", "Otsu", "largest share")
"""How a heat map becomes a mask."""
BINS = 256


@dataclass(frozen=True)
class HeatOptions:
    """How a word's heat map is made.

    Attributes:
        smoothing: standard deviation in cells of the map (DPL 8.2 smooths with 0.5), 0 for none.
        sharpen: how many times the self-attention map is applied: m <- A_self m. A cell then gets the mean of the
            cells that it attends to, which fills objects and follows their edges.
        scales: sizes of the cross maps that are used, of those recorded; None for all.
    """

    smoothing: float = 0.5
    sharpen: int = 0
    scales: tuple[int, ...] | None = None


DEFAULT_HEAT = HeatOptions()


def phrases(text: str) -> list[str]:
    """Words or phrases of a text field, separated by commas or line ends."""
    return [part.strip() for part in re.split(r"[,\n]", text) if part.strip()]


def named(prompt: Prompt, text: str, occurrence: int | None = None) -> dict[str, tuple[int, ...]]:
    """Positions by word or phrase, of those that a text field names; of all words when it is empty.

    Raises:
        ValueError: one of them is not in the prompt.
    """
    wanted = phrases(text)
    if wanted:
        return {phrase: prompt.find(phrase, occurrence) for phrase in wanted}
    found: dict[str, tuple[int, ...]] = {}
    for word in prompt.spelled:
        found[word.text] = (*found.get(word.text, ()), *word.positions)
    return found


def heat_map(recording: Recording, positions: Sequence[int], options: HeatOptions = DEFAULT_HEAT) -> Tensor:
    """Where some text positions are attended to: mean probabilities (B, H, W) at image size.

    Raises:
        ValueError: no maps of the sizes that the options name were recorded.
    """
    low = smooth(word_map(recording, positions, options.scales), options.smoothing)
    if options.sharpen:
        low = sharpen(low, own_map(recording), options.sharpen)
    return resize_maps(low, recording.pixels)


def word_map(recording: Recording, positions: Sequence[int], scales: Sequence[int] | None = None) -> Tensor:
    """Mean cross-attention (B, h, w) to some text positions over all layers, at the size of the largest maps.

    Raises:
        ValueError: no cross maps were recorded at these sizes.
    """
    chosen = [m for scale, m in sorted(recording.cross.items()) if scales is None or scale in scales]
    if not chosen:
        wanted = "" if scales is None else f" of {', '.join(_names(scales))} size"
        has = ", ".join(_names(recording.cross)) or "none at all"
        raise ValueError(
            f"No cross-attention maps{wanted} were recorded; there are {has}. Set map_size in Record Attention Maps."
        )
    columns = torch.tensor([recording.columns.index(position) for position in positions])
    shape = max((m.shape for m in chosen), key=lambda shape: shape[0] * shape[1])
    total = sum(m.layers for m in chosen)
    parts = [resize_maps(_picture(m, columns), shape) * (m.layers / total) for m in chosen]
    return torch.stack(parts).sum(0)


def own_map(recording: Recording) -> MeanMap:
    """The largest self-attention map that was recorded.

    Raises:
        ValueError: there is none.
    """
    if not recording.own:
        raise ValueError(
            "No self-attention was recorded. Choose a size for self_maps in Record Attention Maps and run again."
        )
    return recording.own[min(recording.own)]


def _picture(cross: MeanMap, columns: Tensor) -> Tensor:
    return cross.values.index_select(-1, columns).mean(-1).unflatten(1, cross.shape)


def _names(scales: Sequence[int] | dict[int, MeanMap]) -> list[str]:
    return [name for name, scale in SIZES.items() if scale in scales]


def min_max(maps: Tensor) -> Tensor:
    """Each map (B, h, w) stretched to 0..1; a flat one becomes 0."""
    least, most = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - least) / (most - least).clamp(min=torch.finfo(maps.dtype).tiny)


def smooth(maps: Tensor, deviation: float) -> Tensor:
    """Gaussian blur of maps (B, h, w), borders repeated; the kernel reaches three standard deviations."""
    if deviation <= 0:
        return maps
    reach = max(1, round(3 * deviation))
    place = torch.arange(-reach, reach + 1, dtype=maps.dtype)
    kernel = torch.softmax(-((place / deviation) ** 2) / 2, dim=0)
    x = F.pad(maps[:, None], (reach, reach, reach, reach), mode="replicate")
    x = F.conv2d(x, kernel[None, None, None, :])
    return F.conv2d(x, kernel[None, None, :, None])[:, 0]


def sharpen(maps: Tensor, own: MeanMap, times: int) -> Tensor:
    """A_self^times applied to maps (B, h, w), which comes out at the self-attention map's size."""
    x = resize_maps(maps, own.shape).flatten(1)[..., None]
    for _ in range(times):
        x = own.values @ x
    return x[..., 0].unflatten(1, own.shape)


def otsu(heat: Tensor) -> Tensor:
    """Otsu's thresholds (B,) of heat maps (B, H, W) in 0..1: they part the pixels into the two most unlike classes."""
    thresholds = []
    for image in heat:
        counts = torch.histc(image.double(), BINS, 0.0, 1.0)
        centres = (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS
        below = counts.cumsum(0)
        weighted = (counts * centres).cumsum(0)
        above = below[-1] - below
        means = weighted / below.clamp(min=1), (weighted[-1] - weighted) / above.clamp(min=1)
        between = below * above * (means[0] - means[1]) ** 2
        # All thresholds in an empty stretch between the classes are equally good; take its middle.
        best = (between >= between.max() * (1 - 1e-9)).nonzero()[:, 0].double()
        thresholds.append((best.mean() + 1) / BINS)
    return torch.stack(thresholds).to(heat)


def mask_of_heat(heat: Tensor, rule: str, threshold: float = 0.45, share: float = 0.2) -> Tensor:
    """Masks (B, H, W) bool of heat maps (B, H, W) in 0..1.

    Args:
        rule: one of MASK_RULES.
        threshold: what is hotter is selected, 0..1 (CPAM's mask refinement 0.45, Prompt-to-Prompt 0.3).
        share: of the pixels, the hottest of which are selected, 0..1.
    """
    if rule == "threshold":
        return heat > threshold
    if rule == "Otsu":
        return heat > otsu(heat)[:, None, None]
    if rule == "largest share":
        count = max(1, round(share * heat[0].numel()))
        least = heat.flatten(1).topk(count, dim=1).values[:, -1]
        return (heat >= least[:, None, None]) & (heat > 0)
    raise ValueError(f"Unknown rule {rule!r}; use one of {', '.join(MASK_RULES)}.")


def words_mask(
    recording: Recording,
    words: Mapping[str, Sequence[int]],
    rule: str,
    threshold: float = 0.45,
    share: float = 0.2,
    options: HeatOptions = DEFAULT_HEAT,
) -> tuple[Tensor, Tensor]:
    """The masks of several words joined.

    Args:
        words: text positions by word.
        rule, threshold, share: see `mask_of_heat`.

    Returns:
        mask (B, H, W) bool and heat (B, H, W) in 0..1, the hottest word's at each pixel.

    Raises:
        ValueError: no word is given, or the map of one selects nothing.
    """
    if not words:
        raise ValueError("Name a word of the prompt, or several with commas between.")
    heats, masks = [], []
    for word, positions in words.items():
        heat = min_max(heat_map(recording, positions, options))
        mask = mask_of_heat(heat, rule, threshold, share)
        if not mask.flatten(1).any(1).all():
            raise ValueError(
                f"The map of {word!r} selects nothing by the rule {rule!r}: it is flat, or the threshold {threshold:g} "
                "is too high. Look at it with Attention Map Viewer."
            )
        heats.append(heat)
        masks.append(mask)
    return torch.stack(masks).any(0), torch.stack(heats).amax(0)
