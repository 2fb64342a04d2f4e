"""One place that judges a run before its first evaluation: what is refused, and what the person is told on the node.

A run ends in one of three ways: right; right with remarks that say what was not honoured or is likely to disappoint; or
refused with a text whose first sentence is the cure. What only one method can know it says itself, in its `begin`.
"""

from __future__ import annotations

from typing import Any

from ...host.conditioning import check_readable, same_text
from ...host.guider import is_guided, sampler_name
from ...host.remarks import Kind
from ...inversion.fingerprint import weights_name
from . import null_text
from .acts import How, Site
from .checks import check_halves
from .control import MapControl
from .run import Run

STOCHASTIC = ("ancestral", "sde", "lcm", "ddpm", "er_sde", "seeds", "sa_solver")
"""Parts of the names of the host's samplers that add noise."""
CHOOSING = ("dpm_fast", "dpm_adaptive")
"""The same of those that choose their own noise levels between the first and the last."""
REMEMBERING = ("lms", "_2m", "_3m", "ipndm", "deis", "multistep", "unipc", "uni_pc", "gradient_estimation")
"""The same of those whose steps depend on earlier ones."""


def check_run(run: Run) -> None:
    """Refuse what would end in a wrong picture or in somebody else's error.

    Raises:
        ValueError: a guider, noise levels or texts that the edit cannot be run with.
    """
    check_halves(run)
    for control in run.controls:
        control.fits(run.size)
    model = run.guider.model_patcher
    if run.inversion is not None:
        run.inversion.check_levels(model.get_model_object("model_sampling"))
    for key, conds in run.guider.conds.items():
        texts = [[cond["cross_attn"], cond] for cond in conds or [] if cond.get("cross_attn") is not None]
        check_readable(model, texts, f"{key} prompt")


def judge(run: Run, sampler: Any, batch: int) -> None:
    """Make the remarks that follow from what has met in the run.

    Args:
        sampler: the host's sampler. batch: images in the sampler's latent.

    Raises:
        ValueError: a sampler that a control cannot be run with.
    """
    _judge_sampler(run, sampler)
    null_text.judge_guidance(run)
    _judge_batch(run, batch)
    _judge_prompts(run)
    _judge_weights(run)
    _judge_windows(run)


def _judge_sampler(run: Run, sampler: Any) -> None:
    """A sampler that draws noise loses the image that a run starts from; one that looks back has nothing to see.

    Raises:
        ValueError: a control that must be led along the schedule, and a sampler that goes its own way.
    """
    name = sampler_name(sampler)
    led = [control.name for control in run.controls if control.walks_schedule]
    if led and any(part in name for part in (*STOCHASTIC, *CHOOSING)):
        raise ValueError(
            f"Use euler, ddim, heun or dpmpp_2m: {' and '.join(led)} needs the way along the inversion's schedule, and "
            f"{name} adds noise of its own in every step, or chooses levels of its own."
        )
    if run.resumes and any(part in name for part in REMEMBERING):
        run.remarks.add(
            Kind.DOUBTFUL,
            f"Use euler, ddim, heun or dpm_2 where one sampler goes on from another: {name} looks back at earlier "
            "steps, and begins anew here.",
        )
    if run.plan.schedule is not None and any(part in name for part in STOCHASTIC):
        run.remarks.add(
            Kind.DOUBTFUL,
            f"Use euler, ddim, heun or dpmpp_2m: {name} adds noise of its own in every step, so the image is lost.",
        )


def _judge_batch(run: Run, batch: int) -> None:
    alike = run.plan.schedule is not None and run.plan.variation is None and not run.resumes
    if alike and run.inversion is not None and batch > run.inversion.batch:
        run.remarks.add(
            Kind.DOUBTFUL,
            f"Give the sampler a latent of one image: its {batch} images all begin at the inverted noise of one, "
            "without noise of their own, and come out the same.",
        )


def _judge_prompts(run: Run) -> None:
    """Two prompts that are the same, or one that nobody reads."""
    positive, negative = (run.guider.conds.get(key) or [] for key in ("positive", "negative"))
    if not (run.plan.alters and len(positive) == len(negative) == 1):
        return
    same = same_text(positive[0], negative[0])
    hidden = [control.name for control in run.controls if isinstance(control, MapControl) and _hides(control)]
    if hidden and not same:
        run.remarks.add(
            Kind.IGNORED,
            f"Choose another task in Edit Masks to have the prompt drawn: with the task remove the object "
            f"{' and '.join(hidden)} shows it to no pixel.",
        )
    if same and not hidden and is_guided(run.guider) and not (_has_null_text(run) or _brings_prompts(run)):
        run.remarks.add(
            Kind.DOUBTFUL,
            "Write into the positive prompt what the edit shall show: it is the same as the negative prompt, so that "
            "guidance does nothing.",
        )


def _judge_weights(run: Run) -> None:
    """A trajectory leads back to its image with the weights that it was made with."""
    made_with = "" if run.inversion is None else run.inversion.weights
    here = weights_name(run.guider.model_patcher) if made_with else ""
    if here and here != made_with:
        run.remarks.add(
            Kind.DOUBTFUL,
            "Invert the image again with the edited model, or load the same checkpoint and LoRAs in the same precision "
            "for both: the edited model's weights are not those that the image was inverted with, so that the inverted "
            "noise does not lead back to it.",
        )


def _brings_prompts(run: Run) -> bool:
    """Whether an act draws other prompts than the sampler's."""
    acts = (act for declared in run.declared.values() for act in declared)
    return any(act.at is Site.CROSS and act.how is How.REPLACES and act.contexts is not None for act in acts)


def _has_null_text(run: Run) -> bool:
    return run.inversion is not None and run.inversion.null_states is not None


def _hides(control: MapControl) -> bool:
    shown = control.shown()
    return shown is not None and not bool(shown.any())


def _judge_windows(run: Run) -> None:
    """Windows that no step of a whole run falls into, and controls that never act in it."""
    if run.resumes or not run.whole:
        return
    acting = set()
    for sigma in run.sigmas[:-1]:
        if sigma > 0:
            run.move_to(sigma)
            acting |= set(run.acting.controls)
    for control in run.controls:
        narrow = {
            (act.during.start, act.during.end)
            for act in run.declared[control]
            if act.during.start < act.during.end and not act.during.steps_of(run)
        }
        for start, end in sorted(narrow):
            run.remarks.add(
                Kind.IGNORED,
                f"Widen {control.name}'s window, or invert in more steps: from {start:g} to {end:g} of {run.steps} "
                "steps there is none.",
            )
        if control not in acting and not narrow:
            run.remarks.add(
                Kind.IGNORED,
                f"Check {control.name}'s start and end, or remove its node: as it is set, it does nothing in this run.",
            )


def tell_used(run: Run, sampler: Any, own: list[float], noisy: bool) -> None:
    """Say in one line what an edit of Edit Setup's model was run with, and what of the sampler node was not used.

    Args:
        own: the schedule that the sampler node had, before the inversion's took its place.
        noisy: whether the sampler node brought noise.
    """
    schedule = run.sigmas
    cfg = getattr(run.guider, "cfg", None)
    unused = []
    if len(own) != len(schedule) or any(abs(a - b) > 1e-3 * max(a, b) for a, b in zip(own, schedule, strict=True)):
        unused.append(f"the sampler node's own schedule of {len(own) - 1} steps (steps, scheduler, denoise)")
    if noisy and run.plan.variation is None:
        unused.append("its noise (the seed counts for random choices inside edits only)")
    run.remarks.add(
        Kind.USED,
        f"Edit Setup: {len(schedule) - 1} steps from noise level {schedule[0]:.2f} to {schedule[-1]:.2f}, sampler "
        f"{sampler_name(sampler)}{'' if cfg is None else f', cfg {cfg:g}'}. "
        f"Not used: {'; '.join(unused) if unused else 'nothing, all settings of the sampler node count'}.",
    )
