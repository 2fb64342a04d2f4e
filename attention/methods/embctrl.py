"""EmbCtrl (MaSaFusion, Algorithm 4, Eq 12): the source's text states, with those of the changed words exchanged."""

from __future__ import annotations

from ...host.conditioning import Conditioning
from ..words.alignment import align_refined
from ..words.prompt import Prompt


def changed_tokens(source: Prompt, target: Prompt) -> tuple[int | None, ...]:
    """For each place of the target the place of the source whose state it takes, None where its own stays.

    Prompts of as many tokens are compared place by place (Eq 12), others are aligned as Prompt-to-Prompt refines.
    Padding is the source's.
    """
    if len(source.content) == len(target.content) and source.length == target.length:
        pairs = enumerate(zip(source.ids, target.ids, strict=True))
        return tuple(place if old == new else None for place, (old, new) in pairs)
    mapping = align_refined(source, target)
    places = zip(mapping.transfer.argmax(0).tolist(), mapping.keep.tolist(), strict=True)
    return tuple(None if keep else place for place, keep in places)


def embctrl(source: Prompt, given: Conditioning, target: Prompt, wanted: Conditioning) -> Conditioning:
    """The target's CONDITIONING with the source's states where the words are the same.

    Args:
        source, target: the prompts.
        given, wanted: their CONDITIONINGs. What comes beside the states (SDXL's pooled text, sizes) is `wanted`'s.

    Raises:
        ValueError: a conditioning of several parts or of another prompt, or of different models.
    """
    for side, prompt, conditioning in (("source", source, given), ("target", target, wanted)):
        if len(conditioning) != 1 or conditioning[0][0].shape[1] != prompt.length:
            held = ", ".join(str(states.shape[1]) for states, _ in conditioning)
            raise ValueError(
                f"EmbCtrl's {side} conditioning holds {held} text tokens in {len(conditioning)} part(s), but its "
                f"prompt has {prompt.length} in one. Connect both outputs of one Prompt with Words."
            )
    (before, _), (after, options) = given[0], wanted[0]
    if before.shape[-1] != after.shape[-1] or before.shape[0] not in (1, after.shape[0]):
        raise ValueError(
            f"EmbCtrl's conditionings have shapes {tuple(before.shape)} and {tuple(after.shape)}; encode both with "
            "the same CLIP."
        )
    states = after.clone()
    for place, origin in enumerate(changed_tokens(source, target)):
        if origin is not None:
            states[:, place] = before[:, origin]
    return [[states, dict(options)]]
