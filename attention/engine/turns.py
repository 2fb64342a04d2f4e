"""Editing in turns: the way that an edit's own image has come, kept while it is sampled, is the next edit's inversion.

An edited picture that is decoded, encoded and inverted anew loses a little of everything in every turn, the more the
longer one edits (MaSaFusion, observations on multi-turn editing). But its trajectory is known: the run has just been
along it. The source branch of the next edit reads it level by level as that of a photograph, so that it is replayed
exactly, and what an edit has kept of its source is, bit for bit, still the first photograph's.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...host.conditioning import CONTROL, Conditioning, source_conditioning
from ...host.remarks import Kind
from ...inversion.fingerprint import weights_name
from ...inversion.record import Inversion
from ...inversion.steps import scale_of
from .control import Control, missing_steps
from .moment import Moment, savable
from .plan import plan_of
from .results import Results
from .span import ALIKE

_OF_THE_RUN = ("cross_attn", "model_conds", "uuid", *CONTROL)
"""Entries of a guider's prompt that a source prompt has not: its text stands apart, ControlNets belong to the edit."""


@dataclass(frozen=True, eq=False)
class TurnRecord:
    """What one whole run of an edit leaves.

    Attributes:
        latents: (S, B, C, h, w) float32 on the CPU, of the edited image, as `Inversion.latents` has them.
        source: the image that was edited.
        prompt: what the sampler's positive prompt was, as CONDITIONING.
        null: whether the source's null text stood in the negative prompt's place.
        weights: name of the weights that were sampled with, see `Inversion.weights`.
    """

    latents: Tensor
    source: Inversion
    prompt: Conditioning = field(repr=False)
    null: bool = False
    weights: str = ""

    def inversion(self, prompt: Conditioning | None = None) -> Inversion:
        """The edited image as the source of the next edit, on the schedule of this one.

        Args:
            prompt: its source prompt; None takes the one that it was drawn with.

        Raises:
            ValueError: a prompt that is more than one plain text, or latents that are not finite.
        """
        texts = {} if self.null else {"null_states": None, "null_options": {}, "null_guidance": None}
        return replace(
            self.source,
            latents=self.latents,
            conditioning=source_conditioning(prompt or self.prompt, "source of Next Turn"),
            method="Next Turn",
            errors=(),
            weights=self.weights,
            **texts,
        )


@dataclass(eq=False)
class _Way:
    """What a run has visited.

    Attributes:
        prompt: see `TurnRecord`. latents: (B, C, h, w) in the sampler's scale, by the number of their level.
    """

    prompt: Conditioning
    latents: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class RecordTurn(Control):
    """Keeps the latents that the network is given at the inversion's levels. It changes nothing and evaluates nothing.

    Attributes:
        turns: where they go, those of each run for themselves.
        varied: whether a run starts with noise that is not the source's.
    """

    turns: Results[TurnRecord] = field(default_factory=lambda: Results("No turn has been recorded yet."), repr=False)
    varied: bool = False
    name = "Next Turn"
    on_joint = True
    walks_schedule = True

    def begin(self, run: Moment) -> _Way:
        given = run.guider.conds.get("positive") or []
        texts = [{key: value for key, value in cond.items() if key not in _OF_THE_RUN} for cond in given]
        return _Way([[cond.get("cross_attn"), text] for cond, text in zip(given, texts, strict=True)])

    def resumed(self, run: Moment, state: _Way, before: _Way | None) -> _Way:
        """What was visited before belongs to it.

        Raises:
            ValueError: that is not known.
        """
        if before is None:
            raise missing_steps(run, "Edit Setup's record_turn", "the latents")
        return _Way(state.prompt, dict(before.latents))

    def acts(self, run: Moment, state: _Way) -> bool:
        return run.inversion is not None

    def sees(self, run: Moment, state: _Way, x: Tensor) -> None:
        """Keep what is on the schedule; of several looks at a level (Heun's) the last is the one that is gone on from.

        Raises:
            ValueError: a run with other noise than the source's, which starts later.
        """
        inversion = run.inversion
        level = None if inversion is None else inversion.level(run.sigma)
        if inversion is None or level is None:
            return
        if self.varied and not state.latents and level < len(inversion.sigmas) - 1:
            raise ValueError(
                "Set Edit Setup's denoise to 1, or its variation to 0, or record_turn off: with noise of its own the "
                "edited image has no latents above the level where it starts, which Next Turn needs."
            )
        state.latents[level] = x.detach().float().clone()

    def finish(self, run: Moment, state: _Way, latent: Tensor) -> None:
        """Leave the turn under the latent that the run ended with; a run that another one goes on from leaves none."""
        inversion = run.inversion
        if inversion is None or not run.whole:
            return
        top = max(inversion.level(run.sigmas[0]) or 0, *state.latents)
        if not state.latents.keys() >= set(range(1, top + 1)):
            run.remarks.add(
                Kind.IGNORED,
                "Use euler, ddim, heun or dpmpp_2m where Next Turn goes on: this sampler has left out levels of the "
                "inversion's schedule, so that no turn is recorded.",
            )
            return
        model = run.guider.model_patcher
        latents = savable(lambda: _trajectory(inversion, model.get_model_object("latent_format"), state, latent, top))
        null = inversion.null_states is not None and run.null_text("negative") is not None
        self.turns.keep(latent, TurnRecord(latents, inversion, state.prompt, null, weights_name(model)))


def _trajectory(inversion: Inversion, latent_format: Any, way: _Way, final: Tensor, top: int) -> Tensor:
    """The latents (S, B, C, h, w) of all levels; above the one where the run started they are the source's own.

    Args:
        final: (B, C, h, w), as a LATENT carries it. top: number of the level where the run started.
    """
    scale, z, final = scale_of(inversion.prediction), inversion.latents, final.detach().float().cpu()
    # Where nothing was changed the source's number itself is kept: scaling there and back moves last bits.
    found = [torch.where(final == latent_format.process_out(z[0]), z[0], latent_format.process_in(final))]
    for level, sigma in enumerate(inversion.sigmas[1 : top + 1], 1):
        x = way.latents[level].cpu()
        found.append(torch.where(x == scale.to_sampler(z[level], sigma), z[level], scale.from_sampler(x, sigma)))
    return torch.stack([*found, *(above.expand_as(found[0]) for above in z[top + 1 :])])


def turn_of(model: Any, latent: dict[str, Any]) -> TurnRecord:
    """The turn that a run of Edit Setup's model has left.

    Args:
        model: host MODEL that was sampled. latent: the LATENT that the run ended with.

    Raises:
        ValueError: a model that was not to be recorded, or no recorded run of it ended with this latent.
    """
    plan = plan_of(model)
    if plan.schedule is None:
        raise ValueError(
            "Connect the model of Edit Setup, the one that the sampler runs, to Next Turn: this one does not come from "
            "an Edit Setup, so that its runs are not recorded."
        )
    recorder = next((control for control in plan.controls if isinstance(control, RecordTurn)), None)
    if recorder is None:
        raise ValueError(
            "Switch record_turn on in the Edit Setup whose model is connected to Next Turn: its runs are not recorded."
        )
    turn = recorder.turns.found(latent["samples"], ALIKE)
    if turn is None:
        raise ValueError(
            "Connect the latent of the sampler that runs Edit Setup's model to its end (of SamplerCustomAdvanced the "
            "output) to Next Turn: no recorded run of the connected model has ended with this latent. If it was such a "
            "run, it is not known any more; change the sampler's seed so that it runs again."
        )
    return turn
