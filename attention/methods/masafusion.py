"""MaSaFusion: the edit is fused with the source outside a region, and with an intermediate image inside.

Li, Yi and Li, "Enhancing Text-to-Image Editing via Hybrid Mask-Informed Fusion". The intermediate image has the shape
that the edit shall have: it is drawn from the target prompt and an external condition (sketch, pose, edges; a
T2I-Adapter or ControlNet on the sampler's prompt). Both images predict, with A the region (Eqs 9 and 10),

    outside of A:  from the source prompt, with the source's Att(Q_s, K_s, V_s) in self-attention,
    inside of A:   from the target prompt; the target's self-attention is Att(Q_i, K_i, V_t), with the map of the
                   intermediate image, and the intermediate image's is its own.

Without an intermediate image (Algorithm 5, Eqs 13 and 14) the target's is Att(Q_t, K_s, V_s) inside.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...host.families import Family, Layer, LayerByFamily
from ...host.guider import noise_like
from ...inversion.record import Inversion
from ..engine.acts import Act, Site, Window
from ..engine.branches import OWN, Branch, BranchControl, BranchPart
from ..engine.call import AttentionCall
from ..engine.layers import layers_of
from ..engine.moment import Moment
from ..engine.results import Results
from ..engine.run import Run
from ..engine.substitute import attend_with
from ..masks.cells import check_aspect, for_batch, resize

FIRST_FUSED = LayerByFamily("MaSaFusion's first layer", {"SD1.x": 10, "SD2.x": 10, "SDXL": 44})
"""The paper says "corresponded layers"; these are MasaCtrl's, on which the authors build."""
LATE = "from 10 of 16"
"""The rule for layers that FIRST_FUSED stands for; the others are those of `layers.layers_of`."""
NOISE, MIXED, INVERTED = "noise", "inverted outside, noise inside", "inverted"
STARTS = (NOISE, MIXED, INVERTED)
"""Where the intermediate image begins (Figure 4): the paper recommends the first."""
BESIDE = "intermediate"
"""The name of the intermediate image and of its rows inside the region."""
OUTSIDE, BESIDE_OUTSIDE = "target outside", "intermediate outside"


@dataclass(frozen=True, eq=False)
class MaSaFusion(BranchControl):
    """MaSaFusion.

    Attributes:
        region: A, (M, H, W) bool, where the image may change.
        intermediate: with an intermediate image (Algorithm 1); without one it is Algorithm 5.
        seed: of the fresh noise, from which the intermediate image and the target inside of A begin.
        begins: where the intermediate image begins, of STARTS.
        layers: LATE, or a rule of `layers.layers_of`.
        start, end: shares of the steps between which self-attention is fused. The prompts keep to their regions in
            all steps.
        keeps_negative: a null text of the inversion stands in the source's negative prompt only, and edit and
            intermediate image have the sampler's (the paper's empty one); False: in that of all.
        drawn: the intermediate images of the last runs, as LATENTs carry them.
    """

    region: Tensor
    intermediate: bool = True
    seed: int = 0
    begins: str = NOISE
    layers: str = LATE
    start: float = 0.0
    end: float = 1.0
    keeps_negative: bool = True
    drawn: Results[Tensor] = field(
        default_factory=lambda: Results(
            "There is no intermediate image: run the sampler behind MaSaFusion first, with its intermediate image on "
            "and a region that selects something."
        ),
        repr=False,
    )
    name = "MaSaFusion"

    @property
    def inside(self) -> bool:
        """Whether anything may change."""
        return bool(self.region.any())

    @property
    def outside(self) -> bool:
        """Whether anything is kept."""
        return not bool(self.region.all())

    def acts_on(self, family: Family) -> tuple[Act, ...]:
        layers, window = self.fused(family), Window(self.start, self.end, released=True)
        acts = []
        if self.outside:
            kept = [OUTSIDE, BESIDE_OUTSIDE] if self.intermediate and self.inside else [OUTSIDE]
            acts += [
                Act(Site.SELF, layers, during=window, do=self.as_source, reads="qkv", own_half=True, on=part)
                for part in kept
            ]
        if self.inside and self.intermediate:
            acts.append(Act(Site.SELF, layers, during=window, do=self.as_intermediate, reads="qk", of=BESIDE))
        elif self.inside:
            acts.append(Act(Site.SELF, layers, during=window, do=self.from_source, reads="kv", own_half=True))
        return tuple(acts)

    def fused(self, family: Family) -> tuple[Layer, ...]:
        """The layers whose self-attention is fused."""
        return family.layers[FIRST_FUSED[family] :] if self.layers == LATE else layers_of(family, self.layers)

    def as_source(self, call: AttentionCall) -> Tensor:
        """Outside: all of the source's self-attention (Eq 9)."""
        return attend_with(call, "qkv")

    def as_intermediate(self, call: AttentionCall) -> Tensor:
        """Inside: the intermediate image's map on the target's values (Eq 10)."""
        return attend_with(call, "qk")

    def from_source(self, call: AttentionCall) -> Tensor:
        """Inside without an intermediate image: the target's queries on the source's keys and values (Eq 13)."""
        return attend_with(call, "kv")

    def fits(self, size: tuple[int, int]) -> None:
        """Refuse a region of another picture."""
        check_aspect(self.region, size, "region of MaSaFusion")

    def branches(self, run: Moment) -> tuple[Branch, ...]:
        """The target, and the intermediate image where it feeds anything.

        Raises:
            ValueError: no source image.
        """
        inversion = run.inversion
        if inversion is None:
            raise ValueError("Connect an inversion to MaSaFusion: it keeps the source image outside the region.")
        cells = for_batch(resize(self.region, run.size), run.batch, "region of MaSaFusion").float()[:, None]
        starts = self._starts(run, inversion, cells)
        own = self._parts(inversion, cells, OWN, OUTSIDE)
        if not (self.intermediate and self.inside):
            return (Branch(OWN, own, starts[INVERTED if not self.intermediate else MIXED]),)
        beside = self._parts(inversion, cells, BESIDE, BESIDE_OUTSIDE)
        return Branch(OWN, own, starts[MIXED]), Branch(BESIDE, beside, starts[self.begins])

    def _parts(self, inversion: Inversion, cells: Tensor, inside: str, outside: str) -> tuple[BranchPart, ...]:
        """A branch's prediction inside and outside; only one of them where the other covers nothing."""
        source = inversion.conditioning
        if not (self.inside and self.outside):
            return (BranchPart(inside),) if self.inside else (BranchPart(outside, prompt=source),)
        return BranchPart(inside, cells), BranchPart(outside, 1 - cells, source)

    def _starts(self, run: Moment, inversion: Inversion, cells: Tensor) -> dict[str, Tensor]:
        """Latents (B, C, h, w) to begin from, by name, in the sampler's scale.

        A run that begins later than at the inverted noise begins with as much noise on the image instead.
        """
        sigma = run.sigmas[0]
        inverted = inversion.at(sigma).expand(run.batch, -1, -1, -1)
        fresh = noise_like(inverted, self.seed)
        if inversion.level(sigma) == len(inversion.sigmas) - 1:
            fresh = fresh * (1 + sigma * sigma) ** 0.5
        else:
            fresh = inversion.latents[0] + sigma * fresh
        return {NOISE: fresh, INVERTED: inverted, MIXED: torch.where(cells > 0, fresh, inverted)}

    def finish(self, run: Run, state: Any, latent: Tensor) -> None:
        """Leave the intermediate image, under the latent that the run ended with."""
        if BESIDE in run.ended:
            image = run.guider.model_patcher.get_model_object("latent_format").process_out(run.ended[BESIDE])
            self.drawn.keep(latent, image)
