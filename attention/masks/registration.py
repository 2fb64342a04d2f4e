"""Another editor's picture laid on the photograph: where it was moved and scaled, its colours, and what it changed.

Editors that draw the whole picture anew shift it by some pixels, scale it by some percent and change its colours. Shift
and scale are found by phase correlation (Kuglin and Hines 1975) over a range of scales on a small picture, and then to
a part of a pixel by Gauss-Newton on the pixels themselves (Lucas and Kanade 1981), with gain and offset. Both are
robust: what was edited has no say, by Tukey's biweight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .cells import dilate
from .photo import resampled

COARSE, FINE = 128, 512
"""Longest sides, in pixels, at which scale and shift are looked for, and made exact."""
SCALES = tuple(1.02**power for power in range(-12, 13))
"""Scales that are tried, 0.79 to 1.27; between two of them lie no more than one and a half pixels at the border."""
_ROUNDS, _AGAIN = 12, 3
"""Of the search for a place, and of that for a gain."""
_TUKEY = 4.685 * 1.4826
"""Tukey's constant, 95 % efficient on Gaussian noise, in median absolute deviations."""
_LEVEL = 0.29 / 255
"""The median difference of two pictures that have each been rounded to 8 bits: 1 - sqrt(1/2) levels."""
_FLAT = 0.01**2
"""The variance, of values in 0..1, below which a picture says next to nothing about a gain."""
_STILL = 1e-3
"""Pixels: steps below this end the search."""
_ENOUGH = 64
"""Pixels: about ten for each unknown."""


Small = tuple[Tensor, Tensor, Tensor]
"""Photograph and edited picture (C, H, W), and which pixels (H, W) may be compared."""


@dataclass(frozen=True)
class Registration:
    """Where a picture shows what a photograph shows.

    Attributes:
        scale: vertical and horizontal; what lies p pixels from the photograph's middle lies scale * p + shift pixels
            from the picture's, both at the photograph's size.
        shift: down and right, as a share of the photograph's height and width.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    shift: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Registered:
    """A picture laid on its photograph.

    Attributes:
        image: (B, H, W, C) of the photograph's size.
        mask: (B, H, W) bool, what was changed. inside: (B, H, W) bool, what the picture shows at all.
        found: for each image, where it was.
    """

    image: Tensor
    mask: Tensor
    inside: Tensor
    found: list[Registration]


def lay_on_photo(
    photo: Tensor, edited: Tensor, mask: Tensor | None, colours: bool, threshold: float, grow: int
) -> Registered:
    """Lay an edited picture on its photograph.

    Args:
        photo: (1 or B, H, W, C) in 0..1.
        edited: (1 or B, h, w, C) in 0..1, of any size; stretched to the photograph's before it is compared.
        mask: (1 or B, H, W) bool, what was edited, if that is known; else it is found by the difference.
        colours: match each channel's gain and offset to the photograph's, on what was not edited.
        threshold: from which difference on, in 0..1 and over 5 pixels in the mean, a pixel counts as changed.
        grow: pixels around what has changed that count too.

    Raises:
        ValueError: batches that do not fit, or values that are not finite.
    """
    if not (torch.isfinite(photo).all() and torch.isfinite(edited).all()):
        raise ValueError(
            "Make the edited picture again, most often with --fp32-vae: a picture of Fit Edit to Photo holds NaN or "
            "infinite values."
        )
    counts = {len(photo), len(edited), *(() if mask is None else (len(mask),))}
    batch = max(counts)
    if counts - {1, batch}:
        raise ValueError(
            f"Give Fit Edit to Photo one image, or one per image of the batch: there are {len(photo)} photographs, "
            f"{len(edited)} edited pictures" + (f" and {len(mask)} masks." if mask is not None else ".")
        )
    size, channels = (photo.shape[1], photo.shape[2]), min(photo.shape[-1], edited.shape[-1])
    photo = photo[..., :channels].float().expand(batch, -1, -1, -1)
    edited = resampled(edited[..., :channels].float(), size).expand(batch, -1, -1, -1)
    known = [None] * batch if mask is None else list(mask.expand(batch, -1, -1))
    made = [_one(*each, colours, threshold, grow) for each in zip(photo, edited, known, strict=True)]
    images, masks, insides, found = zip(*made, strict=True)
    return Registered(torch.stack(images), torch.stack(masks), torch.stack(insides), list(found))


def registration(photo: Tensor, edited: Tensor, mask: Tensor | None = None) -> Registration:
    """Where an edited picture (H, W, C) shows what a photograph of the same size shows.

    Args:
        mask: (H, W) bool, what is edited and has no say.
    """
    return _registration(_small(photo.movedim(-1, 0), edited.movedim(-1, 0), _compared(photo, mask), FINE))


def _compared(photo: Tensor, mask: Tensor | None) -> Tensor:
    """Which pixels (H, W) may be compared at all."""
    return torch.ones(photo.shape[:2], dtype=torch.bool) if mask is None else ~mask


def _registration(fine: Small) -> Registration:
    """The same of pictures that are no larger than FINE."""
    coarse = _small(*fine, COARSE)
    found = _by_phase(*coarse)
    for small in (coarse, fine):
        # Gray is the same mixture in both only if each channel has the same gain.
        gray = small[0].mean(0), _coloured(small, found, small[1]).mean(0), small[2]
        found = _by_pixels(*gray, found)
    return min((Registration(), found), key=lambda each: _residual(*gray, each))


def phase_shift(one: Tensor, other: Tensor) -> tuple[tuple[int, int], float]:
    """By how many pixels, down and right, (C, H, W) `other` is `one` moved; and how high the peak is, at most 1.

    Every frequency has the same say, as far as it is more than noise: its phase counts by its share of power over the
    mean's. Channels add up, each with a gain of its own.
    """
    h, w = one.shape[1:]
    window = torch.hann_window(h, periodic=False)[:, None] * torch.hann_window(w, periodic=False)
    a, b = (torch.fft.rfft2((x - x.mean((1, 2), keepdim=True)) * window) for x in (one, other))
    cross = a.conj() * b
    power = cross.abs()
    noise = power.mean((1, 2), keepdim=True)
    peak = torch.fft.irfft2((cross / (power + noise).clamp(min=1e-12)).mean(0), s=(h, w))
    y, x = divmod(int(peak.argmax()), w)
    return ((y + h // 2) % h - h // 2, (x + w // 2) % w - w // 2), float(peak.max())


def _one(
    photo: Tensor, edited: Tensor, mask: Tensor | None, colours: bool, threshold: float, grow: int
) -> tuple[Tensor, Tensor, Tensor, Registration]:
    """One image (H, W, C): laid on the photograph, what was changed and what it shows (H, W), and where it was."""
    fine = _small(photo.movedim(-1, 0), edited.movedim(-1, 0), _compared(photo, mask), FINE)
    found = _registration(fine)
    drawn = edited.movedim(-1, 0)
    warped, inside = _warped(_coloured(fine, found, drawn) if colours else drawn, found)
    image = warped.movedim(0, -1)
    if mask is None:
        differs = (image - photo).abs().amax(-1)
        mean = F.avg_pool2d(differs[None, None], 5, 1, 2, count_include_pad=False)[0, 0]
        mask = dilate((mean > threshold)[None], grow)[0]
    return image.clamp(0, 1), mask & inside, inside, found


def _small(photo: Tensor, edited: Tensor, compared: Tensor, side: int) -> Small:
    """Both pictures (C, H, W) and what may be compared (H, W), at a longest side."""
    scale = min(1.0, side / max(photo.shape[1:]))
    size = (max(8, round(photo.shape[1] * scale)), max(8, round(photo.shape[2] * scale)))
    one, other = (resampled(x.movedim(0, -1)[None], size)[0].movedim(-1, 0) for x in (photo, edited))
    return one, other, F.adaptive_max_pool2d((~compared)[None, None].float(), size)[0, 0] == 0


def _by_phase(photo: Tensor, edited: Tensor, compared: Tensor) -> Registration:
    """The scale of SCALES with the highest peak, and its shift; of pictures (C, H, W)."""
    if compared.any():
        photo = torch.where(compared, photo, photo[:, compared].mean(1)[:, None, None])
    best, highest = Registration(), -1.0
    for scale in SCALES:
        tried = Registration((scale, scale))
        (y, x), peak = phase_shift(photo, _warped(edited, tried)[0])
        if peak > highest:
            shift = (scale * y / photo.shape[1], scale * x / photo.shape[2])
            best, highest = replace(tried, shift=shift), peak
    return best


def _residual(photo: Tensor, edited: Tensor, compared: Tensor, found: Registration) -> float:
    """The median difference where both are known, after the best gain and offset."""
    warped, inside = _warped(edited[None], found)
    chosen = compared & inside
    a, b = photo[chosen], warped[0][chosen]
    return float((a - _linear(a, b, _agreeing(a, b))).abs().median()) if len(a) > _ENOUGH else math.inf


def _by_pixels(photo: Tensor, edited: Tensor, compared: Tensor, found: Registration) -> Registration:
    """Gauss-Newton for scale, shift, gain and offset, on pixels that agree."""
    h, w = photo.shape
    y = ((torch.arange(h) + 0.5) / h - 0.5)[:, None].expand(h, w)
    x = ((torch.arange(w) + 0.5) / w - 0.5).expand(h, w)
    tone: Tensor | None = None
    for _ in range(_ROUNDS):
        warped, inside = _warped(edited[None], found)
        down, right = (d * side for d, side in zip(torch.gradient(warped[0]), (h, w), strict=True))
        # By the chain rule through q = scale * p + shift, in shares of the sides.
        down, right = down / found.scale[0], right / found.scale[1]
        chosen = compared & inside
        if int(chosen.sum()) < _ENOUGH:
            return found
        columns = torch.stack([down * y, right * x, down, right, warped[0], torch.ones_like(photo)], -1)
        a, target = columns[chosen].double(), photo[chosen].double()
        # What was edited has no say from the second round on, also not in the first guess.
        weight = torch.ones_like(target) if tone is None else _tukey(target - a[:, 4:] @ tone)
        start = torch.zeros(6, dtype=torch.float64)
        for _robust in range(3):
            normal = (a * weight[:, None]).T @ a
            normal += 1e-9 * normal.diagonal().mean() * torch.eye(6, dtype=torch.float64)
            start = torch.linalg.solve(normal, (a * weight[:, None]).T @ target)
            weight = _tukey(target - a @ start)
        tone = start[4:]
        # The columns of the derivatives were of the picture without gain.
        step = (start[:4] / start[4].clamp(min=0.1)).clamp(-0.1, 0.1).tolist()
        found = Registration(
            (found.scale[0] + step[0], found.scale[1] + step[1]), (found.shift[0] + step[2], found.shift[1] + step[3])
        )
        if max(map(abs, step)) * max(h, w) < _STILL:
            break
    return found


def _tukey(residual: Tensor) -> Tensor:
    """Tukey's biweight: 1 where two pictures agree, 0 where they differ by more than noise."""
    reach = _TUKEY * max(float(residual.abs().median()), _LEVEL)
    return (1 - (residual / reach) ** 2).clamp(min=0) ** 2


def _coloured(small: Small, found: Registration, edited: Tensor) -> Tensor:
    """The edited picture (C, H, W) of any size, each channel with the gain and offset that suit the photograph's."""
    photo, other, compared = small
    warped, inside = _warped(other, found)
    sure = inside & compared
    if int(sure.sum()) < _ENOUGH:
        return edited
    pairs = [(one[sure], two[sure]) for one, two in zip(photo, warped, strict=True)]
    channels = [_linear(a, b, _agreeing(a, b), of) for (a, b), of in zip(pairs, edited, strict=True)]
    return torch.stack(channels)


def _agreeing(a: Tensor, b: Tensor) -> Tensor:
    """The weights of pixels by which b has one gain and offset to a; found from medians, which an edit moves little."""
    (middle_a, spread_a), (middle_b, spread_b) = (_median(x) for x in (a, b))
    gain = (spread_a + _FLAT**0.5) / (spread_b + _FLAT**0.5)
    weight = _tukey(a - middle_a - gain * (b - middle_b))
    for _ in range(_AGAIN):
        weight = _tukey(a - _linear(a, b, weight))
    return weight


def _median(x: Tensor) -> tuple[Tensor, Tensor]:
    """The median, and the median distance from it."""
    middle = x.median()
    return middle, (x - middle).abs().median()


def _linear(a: Tensor, b: Tensor, weight: Tensor, of: Tensor | None = None) -> Tensor:
    """gain * `of` + offset, with those that give b the mean and deviation of a (Reinhard et al. 2001); `of` or b.

    Least squares would take off contrast wherever the two are not the same to the pixel. Where both are flat the gain
    stays 1, since noise would decide it.
    """
    total = weight.sum().clamp(min=1e-9)
    mean_a, mean_b = (weight * a).sum() / total, (weight * b).sum() / total
    wide_a, wide_b = ((weight * (x - mean) ** 2).sum() / total for x, mean in ((a, mean_a), (b, mean_b)))
    gain = ((wide_a + _FLAT) / (wide_b + _FLAT)).sqrt()
    return gain * ((b if of is None else of) - mean_b) + mean_a


def _warped(image: Tensor, found: Registration) -> tuple[Tensor, Tensor]:
    """(C, H, W) as the photograph would have it, and where (H, W) the picture shows it at all."""
    if found == Registration():
        return image, torch.ones(image.shape[1:], dtype=torch.bool)
    h, w = image.shape[1:]
    y, x = (
        2 * (scale * ((torch.arange(side) + 0.5) / side - 0.5) + shift)
        for side, scale, shift in zip((h, w), found.scale, found.shift, strict=True)
    )
    grid = torch.stack([x.expand(h, w), y[:, None].expand(h, w)], -1)[None]
    # Where all that the filter sees is the picture's own: it reaches two pixels, of which half a one is this pixel.
    inside = (grid[0].abs() <= 1 - 3 / torch.tensor([w, h])).all(-1)
    made = F.grid_sample(image[None], grid, mode="bicubic", padding_mode="border", align_corners=False)
    return made[0], inside
