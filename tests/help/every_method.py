"""Every method of the pack as its own node puts it on a model, with settings that act in a run of a few steps."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import edits
import tiny
from attention_edit.attention.engine.branches import BranchControl
from attention_edit.attention.engine.control import Control, GuidanceControl, LatentControl, MapControl
from attention_edit.attention.engine.plan import plan_of
from attention_edit.attention.engine.turns import RecordTurn
from attention_edit.nodes import NODES
from prompts import prompt

CAT, DOG = prompt("a cat on a mat"), prompt("a dog on a mat")
PROMPTS = {"source_prompt": CAT, "target_prompt": DOG}
CLASSES = {node.define_schema().node_id: node for node in NODES}
Put = Callable[[Any, Any], Any]
"""From a MODEL and an INVERSION to the MODEL with the method on it."""


def outputs(name: str, **given: Any) -> tuple[Any, ...]:
    """What a node gives for some inputs, with its widgets' defaults for the others."""
    node = CLASSES[f"AttnEdit{name}"]
    inputs = node.define_schema().inputs
    first = {i.id: i.options[0] for i in inputs if getattr(i, "options", None)}
    defaults = {i.id: i.default for i in inputs if getattr(i, "default", None) is not None}
    return node.execute(**{**first, **defaults, **given}).args


def put(name: str, **given: Any) -> Put:
    """A method by its node and what is not as in the node's defaults."""
    return lambda model, inversion: outputs(name, model=model, inversion=inversion, **given)[0]


def both(*methods: Put) -> Put:
    """Several on one model."""

    def on(model: Any, inversion: Any) -> Any:
        for method in methods:
            model = method(model, inversion)
        return model

    return on


def masks(**given: Any) -> Any:
    """Edit masks of a box."""
    return outputs("Masks", mask=edits.box().float(), **given)[0]


def _refined(model: Any, inversion: Any) -> Any:
    chosen = outputs("RefineMask", masks=masks(), prompt=DOG, words="dog", start=0.3, self_maps="quarter")[0]
    return put("CPAM", masks=chosen, normal_share=0.3)(model, inversion)


def _regions(model: Any, _: Any) -> Any:
    regions = outputs("Region", mask=edits.box().float(), prompt=tiny.prompt(8))[0]
    return outputs("RegionPrompts", model=model, regions=regions)[0]


def _recorded(model: Any, _: Any) -> Any:
    return outputs("RecordMaps", model=model, prompt=DOG, self_maps="quarter")[0]


_WORDS = {**PROMPTS, "source_words": "cat", "target_words": "dog"}
GUIDED = {"target_prompt": DOG, "mask": edits.box()[0].float(), "words": "dog", "preset": "custom", "iterations": 1}
P2P = put("P2P", **PROMPTS)
METHODS: dict[str, Put] = {
    "background": put("Background", masks=masks()),
    "background, late": put("Background", masks=masks(), start=0.6),
    "cpam": put("CPAM", masks=masks(task="edit, keep the object"), normal_share=0.3, retain_start=0.4),
    "cpam, refined mask": _refined,
    "fpe": put("FPE", end=0.6, both_halves=True),
    "local_blend": both(P2P, put("LocalBlend", **_WORDS, threshold=0.6)),
    "mag": both(put("P2P", **PROMPTS, mode="refine"), put("MAG", **GUIDED, end=0.7, blend_start=0.3)),
    "masactrl": put("MasaCtrl", start=0.3, masks=masks()),
    "masactrl, words": put("MasaCtrl", start=0.2, first_layer=2, threshold=0.5, **_WORDS),
    "p2p": put("P2P", **PROMPTS, weights="dog: 2", windows="dog: 0.2-0.5", self_start=0.2),
    "pnp": put("PnP", negative=tiny.prompt(9), one_call=True),
    "proximal": put("Proximal", hold_from=0.3),
    "recorder": _recorded,
    "regions": _regions,
    "style_aligned": put("StyleAligned", start=0.2, end=0.7),
}
"""By the file of attention/methods/ (or, the recorder, of attention/maps/), and a setting behind a comma."""
BESIDE: dict[str, Put] = {"masafusion": put("MaSaFusion", masks=masks(), seed=3)}
"""Methods that sample images of their own beside the edit, in one whole run."""
_TEXTS = {
    "source_prompt": replace(CAT, states=tiny.prompt(5)[0][0]),
    "target_prompt": replace(DOG, states=tiny.prompt(2)[0][0]),
}
"""With the texts that `edits.invert` inverts with and `edits.run` draws, so that another text is noticed."""
WHOLE: dict[str, Put] = {
    "CPAM": put("CPAM", masks=masks(), normal_share=0.0),
    "Exact Background": put("Background", masks=masks()),
    "FPE": put("FPE", end=1.0),
    "Local Blend": put("LocalBlend", **_TEXTS, source_words="cat", target_words="dog"),
    "MAG-Edit": put("MAG", **{**GUIDED, "target_prompt": _TEXTS["target_prompt"]}),
    "MasaCtrl": put("MasaCtrl", start=0.0, first_layer=0),
    "MaSaFusion": put("MaSaFusion", masks=masks(), seed=3),
    "Plug-and-Play": put("PnP", negative=tiny.prompt(8)),
    "Prompt-to-Prompt": put("P2P", **_TEXTS, cross_end=1.0, self_end=1.0),
    "Proximal Guidance": put("Proximal", hold_from=0.3),
    "Region Prompts": _regions,
    "StyleAligned": put("StyleAligned"),
}
"""By the name that help pages have, a method alone, in all the steps and layers where it can act."""
NO_CONTROL = {"dpl", "embctrl", "flow_edit"}
"""Methods that make an inversion, a conditioning or a sampler, and put nothing on a model."""


def controls_of(model: Any) -> set[type[Control]]:
    """The kinds of controls on a model."""
    return {type(control) for control in plan_of(model).controls}


def kinds_of_control() -> set[type[Control]]:
    """All that the pack has, without those that make an inversion, and without Edit Setup's own."""
    waiting, found = [Control], set()
    while waiting:
        kind = waiting.pop()
        found.add(kind)
        waiting += kind.__subclasses__()
    own = {kind for kind in found if kind.__module__.startswith("attention_edit.") and not inspect.isabstract(kind)}
    own -= {kind for kind in own for name in NO_CONTROL if f".methods.{name}." in kind.__module__}
    return own - {BranchControl, Control, GuidanceControl, LatentControl, MapControl, RecordTurn}
