"""A run and the record of its source: what is told before it, and what its steps take and leave there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import comfy.model_management
import torch

from ...host.caches import without_caches
from ...host.marks import KEY, KEY_NEGATIVE
from ...host.older import inference_dtype, raise_non_oom
from ...host.remarks import Kind
from ...inversion.fingerprint import Digest, UnknownError
from .memory import source_numbers
from .recorded import SourceRecord, forget, free_records, make_way, record_for
from .residual import PATCH
from .run import Run
from .sameness import Sameness, leaves
from .shelves import DEVICE, taken
from .site import SiteHook, append_contexts

MEGABYTE = 1e6
_EACH_CALLS = ("callbacks", "sample_sigmas", "sigmas", "uuids", "cond_or_uncond", "easycache")
"""Transformer options that a call of the network on the source does not depend on, or that each call sets anew."""
_GUIDING = ("sampler_", "disable_cfg1_optimization", "multigpu_clones")
"""How the names of model options begin that act on what is made of predictions, or on where they are made."""


def begin_record(run: Run) -> None:
    """Find the record of the run's source, and tell how much of it is there and what keeping the rest takes."""
    keeping = run.plan.keeping
    if keeping is None or run.inversion is None:
        if run.plan.schedule is not None and run.inversion is not None:
            forget(run.inversion)  # Edit Setup's keep_source was switched off
        return
    wanted = _wanted(run)
    if not wanted:
        return
    record = run.recorded = record_for(run.inversion, keeping, model_of_source(run))
    record.read_with(_negative(run))
    missing, there = 0, 0
    for sigma, size in wanted.items():
        run.move_to(sigma)
        there += run.knows_source
        missing += 0 if run.knows_source else taken(size, record.pins(run.guider.model_patcher.load_device))
    make_way(record, missing)
    if run.plan.packed:
        run.remarks.add(
            Kind.IGNORED,
            "Set keep_source to off to have one_call: what is kept must come from calls of the source alone, so that "
            "it is the same in every edit.",
        )
    _tell(run, record, there, missing, len(wanted))


def _tell(run: Run, record: SourceRecord, there: int, missing: int, steps: int) -> None:
    """Say what of the source is known, and what will be kept."""
    keeping = record.keeping
    said = f"{there} of {steps} steps that read the source are known from earlier edits"
    if record.dropped:
        said = f"nothing of earlier edits is used, since {record.dropped}"
    free = record.shelf.room(run.guider.model_patcher.load_device)
    room = max(0, min(keeping.budget - record.bytes, free))
    if missing > room:
        said += (
            f"; the rest takes {missing / MEGABYTE:.0f} MB and {room / MEGABYTE:.0f} MB are left, so that some steps "
            "run the source each time (raise keep_gb, or keep_source elsewhere)"
        )
    elif missing:
        said += f"; the rest is kept, {missing / MEGABYTE:.0f} MB"
    run.remarks.add(
        Kind.USED,
        f"Source: {said}. {record.bytes / MEGABYTE:.0f} of {keeping.budget / MEGABYTE:.0f} MB {keeping.where}.",
    )


def from_record(run: Run, device: torch.device) -> bool:
    """Take the source's features of this step from the record, if all are there."""
    record = run.recorded
    if record is None or not run.knows_source:
        return False
    later = [sigma for sigma in run.sigmas if sigma < run.sigma]
    found = record.take(run.source_rows, device, later[0] if later else None)
    run.captured.update(found or {})
    return found is not None


def to_record(run: Run, device: torch.device) -> None:
    """Leave the source's features of this step, which have just been read, in the record."""
    if run.recorded is not None:
        run.recorded.keep(run.source_rows, run.needs, run.captured, device)


def end_record(run: Run) -> None:
    """The run is over."""
    if run.recorded is not None:
        run.recorded.rest()


def keeps_on_device(run: Run) -> bool:
    """Whether there is memory of the device that the record could give back."""
    return run.recorded is not None and run.recorded.keeping.where == DEVICE and run.recorded.bytes > 0


def give_back(run: Run) -> bool:
    """Drop what is kept on the device, because memory ran out; whether there was any."""
    if not keeps_on_device(run):
        return False
    run.recorded = None
    freed = free_records(DEVICE)
    run.remarks.add(
        Kind.IGNORED,
        f"Set keep_source to in RAM: the device ran out of memory, so that the {freed / MEGABYTE:.0f} MB of the source "
        "that were kept on it were dropped, and this run keeps none.",
    )
    return True


def with_room(run: Run, do: Callable[[], None]) -> None:
    """Do something; where the device has no memory for it, once more without what is kept there."""
    try:
        return do()
    except Exception as error:
        if not keeps_on_device(run):
            raise
        raise_non_oom(error)
    give_back(run)
    run.forget_source()
    comfy.model_management.soft_empty_cache()
    return do()


def _wanted(run: Run) -> dict[float, int]:
    """Bytes that each step reads of the source, by noise level."""
    inversion, model = run.inversion, run.guider.model_patcher
    item = inference_dtype(model.model).itemsize * (inversion.batch if inversion else 0)
    found = {}
    for sigma in run.sigmas[:-1]:
        if sigma > 0:
            run.move_to(sigma)
            acts = [act for _, act in run.acting.acts if act.reads and not act.of]
            if acts and run.sources():
                numbers = source_numbers(acts, run.family, model, run.size)
                found[sigma] = numbers * len(run.sources()) * item
    return found


def model_of_source(run: Run) -> Sameness:
    """What the source's features depend on beside the inversion: the model as a call on the source meets it."""
    patcher = run.guider.model_patcher
    options = {key: value for key, value in run.guider.model_options.items() if not key.startswith(_GUIDING)}
    options = without_caches(options)
    transformer = options["transformer_options"]
    kept = {key: value for key, value in transformer.items() if key not in (KEY, *_EACH_CALLS)}
    kept["patches_replace"] = {n: _chained(of) for n, of in kept.get("patches_replace", {}).items()}
    options["transformer_options"] = kept
    weights = [patcher.patches_uuid, patcher.object_patches, patcher.injections]
    return Sameness(
        {
            "the model is another one": list(leaves(patcher.model, _as_it_is)),
            "LoRAs or patches of the model's weights have changed": list(leaves(weights, _as_it_is)),
            "patches of other nodes on the model have changed": list(leaves(options, _without_ours)),
        }
    )


def _as_it_is(value: Any) -> Any:
    return value


def _without_ours(value: Any) -> Any:
    """What other packs have put there."""
    if isinstance(value, dict):
        return {key: held for key, held in value.items() if key != KEY}
    return None if value is append_contexts or value is PATCH else value


def _chained(patches: dict[Any, Any]) -> dict[Any, Any]:
    """Patches of layers and blocks: our hooks give way to what they are chained to, in whichever layers they are.

    A hook in front of a whole block's patch leaves that where it is.
    """
    others = [patch for patch in patches.values() if not isinstance(patch, SiteHook)]
    found = {}
    for key, patch in patches.items():
        if not isinstance(patch, SiteHook):
            found[key] = patch
        elif patch.added or not any(patch.previous is other for other in (None, *others)):
            found[key] = [patch.previous, patch.added]
    return found


def _negative(run: Run) -> str:
    """A name of the negative prompt, where the source is run with it too."""
    if not run.halved:
        return ""
    try:
        conds = [{k: v for k, v in cond.items() if k != "uuid"} for cond in run.guider.conds[KEY_NEGATIVE]]
        return Digest().add(conds).name()
    except UnknownError:
        return uuid4().hex
