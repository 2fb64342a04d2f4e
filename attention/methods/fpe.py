"""Free-Prompt-Editing (FPE): the source's self-attention maps, the target's values and the target's prompt.

Cross-attention maps hold what an object is; self-attention maps hold the structure. So only the latter are taken
from the source (Algorithms 1 and 2), and no caption of the source is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...host.families import Family
from ..engine.acts import Act, Site, Window
from ..engine.call import AttentionCall
from ..engine.control import Control
from ..engine.layers import RESOLUTION, layers_of
from ..engine.substitute import attend_with


@dataclass(frozen=True, eq=False)
class FPE(Control):
    """Free-Prompt-Editing.

    Attributes:
        layers: a rule of `layers.layers_of`. The released code takes maps of up to 32 x 32 tokens, the paper's text
            layers 4 to 14; all of them freeze the image.
        end: share of the steps whose maps are replaced (0.8 in the released code).
        both_halves: replace the maps of the unconditional rows too; the released code leaves them alone.
    """

    layers: str = RESOLUTION
    end: float = 0.8
    both_halves: bool = False
    name = "FPE"
    on_joint = True

    def acts_on(self, family: Family) -> tuple[Act, ...]:
        layers, window = layers_of(family, self.layers), Window(0.0, self.end, released=True)
        return (Act(Site.SELF, layers, during=window, do=self.attend, reads="qk", own_half=self.both_halves),)

    def attend(self, call: AttentionCall) -> Tensor:
        """The source's map with the target's values: attention on (Q_s, K_s, V_t)."""
        return attend_with(call, "qk", conditional_only=not self.both_halves)
