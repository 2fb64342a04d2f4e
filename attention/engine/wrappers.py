"""The engine's wrappers: a whole sampler run, one prediction, a batch of conditionings, one UNet call."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import comfy.model_management
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...host.caches import without_caches
from ...host.families import family_of
from ...host.guider import OwnSampler
from ...host.marks import KEY, PATCHES, row_key
from ...host.models import prediction_of
from ...host.older import raise_non_oom
from ...host.remarks import Kind
from . import learned_text
from . import null_text as null_context
from .beside import begin_branches, bring_in_time, only_own, predict, ride, row_of
from .checks import check_acted, check_counted, check_no_mask, check_whole
from .control import moves
from .ends import finished
from .joint import with_site
from .judge import check_run, judge, tell_used
from .moment import savable
from .moves import checked, move
from .plan import Plan
from .planned import further_rows, log_plan
from .reading import left_early
from .recording import begin_record, end_record, give_back, keeps_on_device, with_room
from .roles import Call
from .run import Phase, Run
from .slopes import Network
from .source import add_conditionings, prepare_source, present_as, source_conds, with_source
from .span import Span, leave, span_of
from .starts import side_by_side

log = logging.getLogger(__name__)


def _run_of(options: dict[str, Any]) -> Run | None:
    run = options.get(KEY)
    return run if isinstance(run, Run) else None


def _outer_sample(  # noqa: PLR0913, PLR0917 (the host's signature)
    executor: Any,
    noise: Tensor,
    latent_image: Tensor,
    sampler: Any,
    sigmas: Tensor,
    denoise_mask: Tensor | None = None,
    callback: Any = None,
    disable_pbar: bool = False,
    seed: int | None = None,
    **kwargs: Any,
) -> Tensor:
    """Wrap a whole sampler run: start and schedule, the run's state, and its final latent."""
    guider = executor.class_obj
    options = guider.model_options["transformer_options"]
    plan = options.get(KEY)
    if not isinstance(plan, Plan):
        return executor(noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed, **kwargs)
    latent_format = guider.model_patcher.get_model_object("latent_format")
    check_no_mask(plan, denoise_mask)
    own = isinstance(sampler, OwnSampler)
    given = noise, latent_image, sigmas
    span = Span(*given) if own else span_of(plan, latent_format, *given, seed or 0)
    noise, latent_image, sigmas = span.noise, span.latent, span.sigmas
    run = _start(plan, guider, span, seed, sampler)
    if not own:
        check_counted(run)
    if plan.schedule is not None:
        tell_used(run, sampler, given[2].tolist(), bool(given[0].any()))
    judge(run, sampler, latent_image.shape[0])
    run.remarks.show()
    latent_image, noise = side_by_side(run, latent_format, latent_image, noise)
    options[KEY] = run
    callback = only_own(run, callback)
    if any(moves(control) for control in plan.controls):
        callback = checked(run, callback)
    try:
        out = executor(noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed, **kwargs)
        check_acted(run)
        out = finished(run, latent_format, out)
        if not own:
            leave(run, out)
        run.remarks.show()  # in place of what was said on the way
    finally:
        options[KEY] = plan
        run.forget_source()
        end_record(run)
    passes = f", and {run.guiding} passes for gradients" if run.guiding else ""
    log.info("Attention Edit: %d UNet evaluations%s", run.evaluations, passes)
    return out


def _start(plan: Plan, guider: Any, span: Span, seed: int | None, sampler: Any) -> Run:
    """The run's state, after everything that can be checked before sampling has been."""
    model, sigmas, latent = guider.model_patcher, span.sigmas.tolist(), span.latent
    family = family_of(model)
    if plan.inversion is not None:
        plan.inversion.check_model(family.name, prediction_of(model))
        plan.inversion.check_schedule(sigmas)
        size = tuple(plan.inversion.latents.shape[-2:])
        if tuple(latent.shape[-2:]) != size:
            raise ValueError(
                f"The sampler's latent is {latent.shape[-1]}x{latent.shape[-2]}, but the inverted image's is "
                f"{size[1]}x{size[0]}. Connect Edit Setup's latent to the sampler."
            )
    size = (int(latent.shape[-2]), int(latent.shape[-1]))
    seed, left = (span.before.seed, span.before.states) if span.before else (seed or 0, {})
    given = family, seed, sigmas, size, guider, plan.inversion, latent.shape[0]
    run = Run(*given, plan=plan, resumes=span.resumes, left=left)
    begin_branches(run, sampler)
    add_conditionings(run)
    check_run(run)
    savable(run.begin)
    begin_record(run)
    log_plan(run)
    return run


def _predict_noise(
    executor: Any,
    x: Tensor,
    timestep: Tensor,
    model_options: dict[str, Any] | None = None,
    seed: int | None = None,
) -> Tensor:
    """Wrap one prediction: the source first, then the target with the controls on."""
    model_options = model_options or {}
    run = _run_of(model_options.get("transformer_options", {}))
    if run is None:
        return executor(x, timestep, model_options, seed)
    run.move_to(float(timestep.max()))
    run.moved = None
    acting = run.acting
    if not acting.controls:
        return executor(x, timestep, model_options, seed)
    run.forget_source()
    run.acted.update(acting.controls)
    # Features of the source are read within one call, and so on one device.
    model_options = {k: v for k, v in model_options.items() if k != "multigpu_clones"}
    guider = executor.class_obj
    try:
        if run.inversion is not None and acting.reads_source:
            with_room(run, lambda: prepare_source(run, guider, timestep, model_options))
        own = run.own(x)
        if acting.moves:
            move(run, own, Network(run, guider, run.own(timestep), without_caches(model_options)))
        given = own
        for control in acting.latents:
            given = control.given(run, run.states[control], given, run.sigma)
        for control in acting.controls:
            control.sees(run, run.states[control], given)
        with run.during(Phase.EDIT):
            asked = (x if given is own else run.with_own(x, given), timestep, model_options, seed)
            denoised = _apart_if_needed(run, guider, asked, executor)
    finally:
        run.forget_source()
    if not acting.latents:
        return denoised
    found = run.own(denoised)
    for control in acting.latents:
        found = control.predicted(run, run.states[control], found, own, run.sigma)
    return run.with_own(denoised, found)


def _apart_if_needed(run: Run, guider: Any, given: tuple[Any, ...], executor: Any) -> Tensor:
    """The edit's prediction; where all in one call does not fit into memory, once more with what is read apart."""
    try:
        return executor(*given)
    except Exception as error:
        crowded = run.packed_source is not None or bool(run.riding)
        if not (crowded or keeps_on_device(run)) or run.acting.keeps_sums:
            raise  # what layers have added to sums before the failure would count twice
        raise_non_oom(error)
    # Outside of the handler, whose traceback would hold the call's tensors.
    if give_back(run):
        return _apart_if_needed(run, guider, given, executor)
    run.remarks.add(
        Kind.IGNORED,
        "Switch one_call off: out of memory with one_call, so that what is read runs in calls of its own from here on.",
    )
    run.apart = True
    run.forget_source()
    comfy.model_management.soft_empty_cache()
    if run.acting.reads_source:
        prepare_source(run, guider, *given[1:3])
    return executor(*given)


def _calc_cond_batch(
    executor: Any, model: Any, conds: list[Any], x_in: Tensor, timestep: Tensor, model_options: dict[str, Any]
) -> list[Tensor]:
    """Wrap the batch of conditionings: texts of the step, and a packed source as one more, first, never late."""
    run = _run_of(model_options.get("transformer_options", {}))
    if run is None:
        return executor(model, conds, x_in, timestep, model_options)
    conds = [null_context.replaced(run, i, learned_text.with_learned(run, part)) for i, part in enumerate(conds)]
    if run.phase is not Phase.EDIT:
        return executor(model, conds, x_in, timestep, model_options)
    # A packed source comes first, so that it is never late; further negatives stand behind the guider's own.
    sources = source_conds(run) if run.packed_source is not None else []
    sources = [null_context.replaced(run, 1, learned_text.with_learned(run, part)) for part in sources]
    halves = len(conds) > 1 and conds[0] is not None and conds[1] is not None
    names = further_rows(run) if halves else []
    further = [[c for c in run.guider.conds[row_key(name)] if "area" not in c] for name in names]

    def evaluate(given: list[Any], x: Tensor) -> list[Tensor]:
        return executor(model, given, x, timestep[: len(x)], model_options)

    if run.branches and len(x_in) == run.batch * len(run.branches):
        out, behind = predict(run, evaluate, conds, x_in, sources, further)
    else:
        found = evaluate([*sources, *conds, *further], x_in)[len(sources) :]
        out, behind = found[: len(conds)], found[len(conds) :]
    if halves and run.acting.guidance:
        predictions = {"cond": run.own(out[0]), "uncond": run.own(out[1]), **dict(zip(names, behind, strict=True))}
        for control in run.acting.guidance:
            predictions |= control.combine(run, run.states[control], predictions)
        out[0], out[1] = run.with_own(out[0], predictions["cond"]), run.with_own(out[1], predictions["uncond"])
    return out


def _apply_model(
    executor: Any,
    x: Tensor,
    t: Tensor,
    c_concat: Tensor | None = None,
    c_crossattn: Tensor | None = None,
    control: Any = None,
    transformer_options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Tensor:
    """Wrap one UNet call: tell the layers whose rows are whose, and give a packed source its latent."""
    options = transformer_options or {}
    run = _run_of(options)
    if run is None:
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
    options = {**options, PATCHES: options.get("patches_replace", {})}
    if run.family.joint:
        options = with_site(run, executor.class_obj.diffusion_model, x, options, kwargs)
    if run.reading:
        run.guiding += len(x)
    else:
        run.evaluations += len(x)
    if run.phase is Phase.IDLE:
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
    indices, uuids = options.get("cond_or_uncond") or (), options.get("uuids") or ()
    if not indices or len(indices) != len(uuids) or len(x) % len(indices):
        # Another pack's call with options of its own: nobody has said whose rows these are, so none is ours.
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
    check_whole(run, x)
    rows = tuple(row_of(uuid, index) for uuid, index in zip(uuids, indices, strict=True))
    found = [run.role_of(row.uuid, row.half) for row in rows]
    roles, lengths = tuple(role for role, _ in found), tuple(length for _, length in found)
    call = Call(run, roles, len(x) // len(roles), x.device, lengths, rows)
    options = {**options, KEY: call, "cond_or_uncond": present_as(run, roles, indices)}
    if run.phase is Phase.EDIT:
        bring_in_time(run, call)
        x = ride(run, rows, with_source(run, call, x))
    return left_early(x, lambda: executor(x, t, c_concat, c_crossattn, control, options, **kwargs))


WRAPPERS: tuple[tuple[str, Callable[..., Any]], ...] = (
    (WrappersMP.OUTER_SAMPLE, _outer_sample),
    (WrappersMP.PREDICT_NOISE, _predict_noise),
    (WrappersMP.CALC_COND_BATCH, _calc_cond_batch),
    (WrappersMP.APPLY_MODEL, _apply_model),
)
"""What a patched MODEL carries, by the host's kind of wrapper."""
