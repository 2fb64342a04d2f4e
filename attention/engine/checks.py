"""What a run refuses: before it starts, at a UNet call, and when it is over."""

from __future__ import annotations

from torch import Tensor

from ...host.conditioning import encoded_alike
from ...host.remarks import Kind
from ..words.prompt import Prompt
from .control import GuidanceControl
from .moment import Moment
from .plan import Plan
from .run import Run
from .site import SiteHook


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
        replaced = run.guider.model_options["transformer_options"].get("patches_replace", {})
        found = {type(p).__name__ for part in replaced.values() for p in part.values() if not isinstance(p, SiteHook)}
        names = ", ".join(sorted(found))
        cure = f"Put the node of the patch {names} before the edit nodes" if found else "Remove other packs' patches"
        text = f"{cure}: {len(missing)} of {len(expected)} attention layers of the edit were never reached."
        if missing == expected:
            raise RuntimeError(f"{text} The edit did nothing.")
        run.remarks.add(Kind.IGNORED, text)


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
    """Refuse a target prompt that is not the one which is sampled with, of as many tokens.

    Raises:
        ValueError: the encoded texts differ.
    """
    for cond in run.guider.conds.get("positive") or []:
        states = cond.get("cross_attn")
        if states is None or prompt.states is None or states.shape[1:] != prompt.states.shape[1:]:
            continue  # other lengths are refused where the words are looked for
        if not encoded_alike(states, prompt.states):
            raise ValueError(
                f"{name}'s target_prompt is {prompt.text!r}, but the sampler's positive conditioning is another "
                "prompt (or from another CLIP). Connect both outputs of one Prompt with Words: its prompt to "
                f"{name} and its conditioning to the sampler (or to the inversion whose maps are recorded)."
            )
