"""What a method must say to act in a run, and when the engine calls it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor

from ...host.conditioning import Conditioning
from ...host.families import Family, Layer
from .acts import Act, How
from .call import AttentionCall
from .moment import Moment


class Control:
    """A method acting in a sampler's run. Subclasses are frozen dataclasses; what changes in a run is their state.

    A control declares its acts on the network's layers; `begin` checks what can be checked before a run and makes
    the state of this control in this run, which every further call is given (acts find it in `AttentionCall.state`).
    """

    name = "control"
    guidable: bool = False
    """Whether gradients may be taken through it: what it makes of cross-attention maps is known and differentiable."""
    on_joint: bool = False
    """Whether it works on transformers, where one attention serves text and image."""
    walks_schedule: bool = False
    """Whether the sampler must go from level to level of the schedule, without noise of its own on the way."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Control:
        return self

    def acts_on(self, family: Family) -> tuple[Act, ...]:
        """What it does in which layers of a family, during which steps."""
        return ()

    def fits(self, size: tuple[int, int]) -> None:
        """Refuse what does not go with a latent of a size (h, w).

        Called as soon as the control meets an image, on its own node, and again before a run.

        Raises:
            ValueError: such as for a mask of another picture's shape.
        """

    def begin(self, run: Moment) -> Any:
        """Called once per run, before the first step; returns the control's state in it."""
        return None

    def resumed(self, run: Moment, state: Any, before: Any) -> Any:
        """The state in a run that goes on where another one ended; the run is at its first step.

        Args:
            state: what `begin` has made.
            before: this control's state when the other run ended, not to be changed, since more than one run may go
                on from there; None if it had no part in that run, or that is not known any more.

        Raises:
            ValueError: it needs what it has gathered in earlier steps, and that is not there; see `missing_steps`.
        """
        return state

    def acts(self, run: Moment, state: Any) -> bool:
        """Whether it does something at the run's present step beside its acts."""
        return False

    def sees(self, run: Moment, state: Any, x: Tensor) -> None:
        """Told the latent (B, C, h, w), in the sampler's scale, that the network is given, when all have changed it."""

    def finish(self, run: Moment, state: Any, latent: Tensor) -> None:
        """Called once after a run that was neither interrupted nor failed, given its final latent."""


class Slopes(Protocol):
    """The network at the present noise level, for controls that differentiate through it: `slopes.Network`."""

    def slopes(
        self, layers: Sequence[Layer], checkpointing: bool = False
    ) -> AbstractContextManager[Callable[..., Tensor | None]]:
        """See `slopes.Network.slopes`."""
        ...


class LatentControl(Control):
    """A control that changes latents (B, C, h, w): the sampler's, what the network is given, or what it predicts."""

    def acts(self, run: Moment, state: Any) -> bool:
        return True

    def before(self, run: Moment, state: Any, x: Tensor, network: Slopes) -> Tensor:
        """The latent that the sampler shall go on from instead of x, before this step's prediction."""
        return x

    def given(self, run: Moment, state: Any, x: Tensor, sigma: float) -> Tensor:
        """The latent, in the sampler's scale, that the network is given instead of x."""
        return x

    def predicted(self, run: Moment, state: Any, denoised: Tensor, x: Tensor, sigma: float) -> Tensor:
        """The prediction of the clean latent that the sampler is given."""
        return denoised

    def result(self, run: Moment, state: Any, latent: Tensor, source: Tensor) -> Tensor:
        """The run's final latent; the run is at the level that it ended at.

        Args:
            latent: what the sampler gives, and source: the source's latent of that level. Both are in DDPM scale at
                the inversion's cleanest level (`Moment.whole`), in the sampler's above it.
        """
        return latent


class GuidanceControl(Control):
    """A control that changes what guidance combines: further predictions, and the two halves made of them."""

    def acts(self, run: Moment, state: Any) -> bool:
        return True

    def rows(self) -> Mapping[str, Conditioning]:
        """Further negative prompts by name; each costs a row in every step, treated as the unconditional rows are."""
        return {}

    def combine(self, run: Moment, state: Any, predictions: dict[str, Tensor]) -> dict[str, Tensor]:
        """Given "cond", "uncond" and those of `rows`, each (B, C, h, w), the "cond" and "uncond" to guide with."""
        return predictions


class MapControl(Control):
    """A control that puts other cross-attention maps in the place of the prompt's own."""

    def rewritten(self, state: Any, call: AttentionCall, source: Tensor, target: Tensor) -> Tensor:
        """The map (B, H, N, L) that it puts in the place of the conditional rows' cross-attention map.

        Args:
            source: (B, H, N, L_s), the source's map; its text may have another length.
            target: (B, H, N, L), the target's own, or what earlier controls made of it.
        """
        return target

    def copies(self, run: Moment, state: Any, word: Sequence[int]) -> bool:
        """Whether the map's columns at positions of the target prompt are now the source's, whatever the edit."""
        return False

    def shown(self) -> Tensor | None:
        """Where pixels see the prompt at all: (M, H, W) bool; None for everywhere."""
        return None

    def follows(self) -> str:
        """The node by which it follows words of the sampler's prompt; empty if it does not."""
        return ""


def missing_steps(run: Moment, name: str, what: str) -> ValueError:
    """What is said where a run goes on without what a control has gathered in the steps before."""
    return ValueError(
        f"Sample with {name} from the first step on, in one sampler or in several with the same Edit Setup's model: "
        f"it needs {what} of the steps before sigma {run.sigma:.3f}, where this sampler goes on, and they are not "
        "known here. If the sampler before has not run for long, change its seed so that it runs again."
    )


def moves(control: Control) -> bool:
    """Whether it changes the sampler's own latent."""
    return isinstance(control, LatentControl) and type(control).before is not LatentControl.before


def results(control: LatentControl) -> bool:
    """Whether it changes the run's final latent."""
    return type(control).result is not LatentControl.result


def only_looks(control: Control, family: Family) -> bool:
    """Whether the run comes out the same without it, bit for bit."""
    if isinstance(control, LatentControl | GuidanceControl):
        return False
    return all(act.how is How.LOOKS for act in control.acts_on(family))
