"""What a run refuses: before it starts, at a UNet call, and when it is over."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...host.caches import step_caches_on
from ...host.conditioning import encoded_alike
from ...host.remarks import Kind
from ..words.prompt import Prompt
from .acts import How, Site
from .control import GuidanceControl
from .moment import Moment
from .plan import Plan
from .run import Run
from .site import SiteHook, additions


def check_halves(run: Run) -> None:
    """Refuse a guider with three prompts where a control must know which is the negative one."""
    names = [
        control.name
        for control, acts in run.declared.items()
        if isinstance(control, GuidanceControl) or any(act.own_half for act in acts)
    ]
    if names and "middle" in run.guider.conds:
        raise ValueError(
            f"{' and '.join(names)} must know the two halves of guidance, and this guider has three prompts. Use "
            "KSampler or CFG Guider."
        )


def check_no_mask(plan: Plan, denoise_mask: Tensor | None) -> None:
    """Refuse a latent with a noise mask on Edit Setup's model."""
    if plan.schedule is not None and denoise_mask is not None:
        raise ValueError(
            "Remove Set Latent Noise Mask, and use Exact Background to keep the image outside a mask: the latent has a "
            "noise mask, but Edit Setup's model starts from the inverted image itself."
        )


def check_counted(run: Run) -> None:
    """Refuse windows of steps in a part of a run whose whole is not known.

    Raises:
        ValueError: without an inversion, a run that ends early or goes on, and a control that counts its steps.
    """
    if run.inversion is not None or (run.whole and not run.resumes) or run.sigmas[0] < run.sigmas[-1]:
        return
    for control, acts in run.declared.items():
        if any(act.during.start > 0 or act.during.end < 1 for act in acts):
            raise ValueError(
                f"Set {control.name}'s start to 0 and its end to 1, or sample in one run: they are shares of all "
                f"steps, and this sampler runs from sigma {run.sigmas[0]:.3f} to {run.sigmas[-1]:.3f} only, without an "
                "inversion's schedule to count on."
            )


def check_acted(run: Run) -> None:
    """Raise RuntimeError if a control never got to act, and say who took its place."""
    expected = {(act.at, layer.index) for acts in run.declared.values() for act in acts for layer in act.layers}
    missing = expected - run.sites_called
    if missing:
        count = f"{len(missing)} of {len(expected)} attention layers"
        text = f"{cure_of_replaced(run)}: {count} of the edit were never reached."
        if missing == expected:
            raise RuntimeError(f"{text} The edit did nothing.")
        run.remarks.add(Kind.IGNORED, text)
    _tell_covered(run)
    caches = step_caches_on(run.guider.model_patcher)
    if caches and run.guiding:
        run.remarks.add(
            Kind.IGNORED,
            f"Remove {' and '.join(caches)} from the edited model, or expect next to nothing of the guidance by "
            "gradients: a step that a cache answers is not guided.",
        )


def cure_of_replaced(run: Run) -> str:
    """What to do where an edit's layers are not reached, with the patches of other nodes that replace some.

    On a UNet a patch that stands before the edit is chained to it. A transformer's patch of a block runs the block,
    with the edit in it, or leaves it out, wherever its node stands.
    """
    replaced = run.guider.model_options["transformer_options"].get("patches_replace", {})
    patches = [patch for part in replaced.values() for patch in part.values()]
    ours = [patch for patch in patches if isinstance(patch, SiteHook)]
    chained = [hook.previous for hook in ours]
    found = {_told(patch) for patch in patches if patch not in ours and patch not in chained}
    if not found:
        return "Remove other packs' patches"
    names = ", ".join(sorted(found))
    if run.family.joint:
        return f"Remove the node of the patch {names}"
    return f"Put the node of the patch {names} before the edit nodes"


def _told(patch: Any) -> str:
    """A patch as its pack calls it: the name of its function or class."""
    return str(getattr(patch, "__name__", type(patch).__name__))


def _tell_covered(run: Run) -> None:
    """Remark on patches, set before the edit, of cross-attention that a control computes anew from the text alone."""
    patches = run.guider.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
    for control, acts in run.declared.items():
        keys = {layer.key for act in acts if act.at is Site.CROSS and act.how is How.REPLACES for layer in act.layers}
        hooks = [patch for key, patch in patches.items() if key in keys and isinstance(patch, SiteHook)]
        found = [hook.previous for hook in hooks if hook.previous is not None and not additions(hook.previous)]
        for name in sorted({_told(patch) for patch in found}):
            run.remarks.add(
                Kind.IGNORED,
                f"Expect next to nothing of the patch {name}, or put its node after the edit nodes, where it takes the "
                f"edit's place: {control.name} computes the text's attention anew in {len(found)} layers where it is.",
            )


def check_whole(run: Run, x: Tensor) -> None:
    """Refuse a UNet call on a part of the picture, and name what makes it.

    Raises:
        ValueError: the latent is not of the run's size.
    """
    if tuple(x.shape[-2:]) == run.size:
        return
    part = f"{x.shape[-1]}x{x.shape[-2]} of the latent's {run.size[1]}x{run.size[0]} cells"
    if any(cond.get("area") is not None for conds in run.guider.conds.values() for cond in conds or []):
        raise ValueError(
            f"Replace Conditioning (Set Area) by a mask: a conditioning covers an area of {part}, and edits need "
            "conditionings of the whole image."
        )
    raise ValueError(
        f"Remove the node that runs the model on windows or tiles of the picture (sliding-window guidance, tiled "
        f"diffusion, context windows) from the edited model: it asks for {part}, and edits need the whole image."
    )


def check_source_prompt(run: Moment, prompt: Prompt, name: str) -> None:
    """Refuse a source prompt that is not the one which the run's image was inverted or drawn with.

    The maps of its words would be read in another text, whose words stand elsewhere.

    Raises:
        ValueError: the encoded texts differ.
    """
    if run.inversion is None or prompt.states is None:
        return
    if not encoded_alike(run.inversion.conditioning[0][0], prompt.states):
        raise ValueError(
            f"{name}'s source_prompt is {prompt.text!r}, but the inversion was made with another prompt (or another "
            "CLIP). Connect that Prompt with Words' conditioning to DDIM Inversion's source too."
        )


def check_target_prompt(run: Moment, prompt: Prompt, name: str) -> None:
    """Refuse a target prompt that is not the one which is sampled with: its words would be read in another text.

    Raises:
        ValueError: the encoded texts differ.
    """
    for cond in run.guider.conds.get("positive") or []:
        states = cond.get("cross_attn")
        if states is None:
            continue
        if states.shape[1] != prompt.length:
            raise ValueError(
                "Connect both outputs of one Prompt with Words: its conditioning to the sampler (or to the inversion "
                f"whose maps are recorded) and its prompt to {name}. The sampler's positive conditioning has "
                f"{states.shape[1]} text tokens, {name}'s target_prompt {prompt.length}."
            )
        if prompt.states is not None and not encoded_alike(states, prompt.states):
            raise ValueError(
                f"{name}'s target_prompt is {prompt.text!r}, but the sampler's positive conditioning is another "
                "prompt (or from another CLIP). Connect both outputs of one Prompt with Words: its prompt to "
                f"{name} and its conditioning to the sampler (or to the inversion whose maps are recorded)."
            )
