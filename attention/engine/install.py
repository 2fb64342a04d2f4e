"""The engine: puts controls on a MODEL.

Everything is installed on a clone with documented host hooks: replace patches on the attention layers that the
controls name (in front of patches that are there already), one attn2 patch, and the wrappers that run the source
branch beside the edit.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from comfy.patcher_extension import CallbacksMP, WrappersMP

from ...host.conditioning import source_conditioning
from ...host.families import Family, Layer, family_of
from ...host.marks import KEY
from ...inversion.record import Inversion
from .acts import Site
from .control import Control, only_looks
from .joint import check_joint
from .memory import make_room
from .plan import Plan, plan_of
from .recorded import Keeping
from .residual import PATCH
from .site import SiteHook, append_contexts
from .variation import Variation
from .wrappers import WRAPPERS


def install(model: Any, control: Control, inversion: Inversion | None = None, packed: bool | None = None) -> Any:
    """A clone of a host MODEL with a control added after those that it has.

    Args:
        inversion: the source image that the control reads, if it reads one.
        packed: run the source in the target's UNet call; None leaves it as it is.

    Raises:
        ValueError: unknown model family, a mask of another picture, another inversion than that of earlier controls,
            or a control that excludes an earlier one.
    """
    family, plan = family_of(model), plan_of(model)
    if inversion is not None:
        source_conditioning(inversion.conditioning)
        plan = plan.with_source(inversion)
        control.fits((int(inversion.latents.shape[-2]), int(inversion.latents.shape[-1])))
    if family.joint:
        check_joint(control, family)
    for earlier in plan.controls:
        _check_apart(earlier, control, family, plan.inversion.steps if plan.inversion else None)
    alters = plan.alters or not only_looks(control, family)
    packed = plan.packed if packed is None else packed
    plan = replace(plan, controls=(*plan.controls, control), packed=packed, alters=alters)
    patched = with_plan(model, plan)
    if family.joint:
        return patched  # the wrappers put the site of joint attention into each call
    acts = control.acts_on(family)
    for act in acts:
        for layer in act.layers:
            _hook(patched, act.at, layer)
    patches = patched.model_options["transformer_options"].get("patches", {})
    if any(act.blocks for act in acts) and PATCH not in patches.get("forward_timestep_embed_patch", []):
        patched.set_model_forward_timestep_embed_patch(PATCH)
    crosses = any(act.at is Site.CROSS and act.layers for act in acts)
    if crosses and append_contexts not in patches.get("attn2_patch", []):
        patched.set_model_attn2_patch(append_contexts)
    return patched


def _check_apart(first: Control, second: Control, family: Family, steps: int | None) -> None:
    """Raise ValueError if two controls compute the same attention anew: one of them would do nothing."""
    for one in first.acts_on(family):
        for other in second.acts_on(family):
            shared = one.excludes(other, steps)
            if shared:
                start, end = max(one.during.start, other.during.start), min(one.during.end, other.during.end)
                raise ValueError(
                    f"{first.name} and {second.name} do not go together here: both replace the {one.at.value}-"
                    f"attention of {len(shared)} layers ({shared[0].index} to {shared[-1].index}) from {start:.0%} to "
                    f"{end:.0%} of the steps, so that one of them would do nothing. Remove one, or set their windows "
                    "or layers apart."
                )


def with_plan(model: Any, plan: Plan) -> Any:
    """A clone of a host MODEL that follows a plan, with the engine's wrappers on it."""
    patched = model.clone()
    options = patched.model_options
    options["transformer_options"] = {**options.get("transformer_options", {}), KEY: plan}
    for kind, wrapper in WRAPPERS:
        patched.remove_wrappers_with_key(kind, KEY)
        patched.add_wrapper_with_key(kind, KEY, wrapper)
    patched.remove_wrappers_with_key(WrappersMP.PREPARE_SAMPLING, KEY)
    patched.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, make_room)
    patched.remove_callbacks_with_key(CallbacksMP.ON_CLONE, KEY)
    patched.add_callback_with_key(CallbacksMP.ON_CLONE, KEY, _own_hooks)
    return patched


def _own_hooks(_: Any, clone: Any) -> None:
    """Give a clone hooks of its own: other packs add to them, and must not add to the model that was cloned."""
    for patches in clone.model_options["transformer_options"].get("patches_replace", {}).values():
        for key, patch in patches.items():
            if isinstance(patch, SiteHook):
                patches[key] = copy.deepcopy(patch)


_NAMES = {Site.SELF: "attn1", Site.CROSS: "attn2"}


def _hook(model: Any, site: Site, layer: Layer) -> None:
    """Put a SiteHook on one attention, in front of the patch that is there."""
    name = _NAMES[site]
    present = model.model_options["transformer_options"].get("patches_replace", {}).get(name, {})
    previous = present.get(layer.key, present.get(layer.block))
    if isinstance(previous, SiteHook):
        return
    setter = model.set_model_attn1_replace if site is Site.SELF else model.set_model_attn2_replace
    setter(SiteHook(site, layer, previous), *layer.block, layer.depth)


def pin(
    model: Any,
    inversion: Inversion,
    schedule: tuple[float, ...],
    variation: Variation | None = None,
    keeping: Keeping | None = None,
) -> Any:
    """A clone of a MODEL that starts at the inverted noise and follows a schedule, whichever sampler runs it.

    Args:
        variation: of the noise; None leaves it as it is.
        keeping: of what is read of the source, for later edits; None for nothing.
    """
    plan = plan_of(model).with_source(inversion)
    return with_plan(model, replace(plan, schedule=schedule, variation=variation, keeping=keeping))
