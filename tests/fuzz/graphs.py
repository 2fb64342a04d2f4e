"""Draws whole cases: an inversion and what improves on it, methods on a model, samplers, and what shows their runs."""

from __future__ import annotations

from typing import Any

from cases import Call, Case, Ref
from drawing import JOINT_METHODS, METHODS, RARE, SAMPLER_NAMES, STEPS, Drawing, drawn_worlds
from hypothesis import strategies as st
from worlds import Image

IMPROVEMENTS = ("NegativePrompt", "Direct", "FixedPoint", "NullText", "DPL")
SURE = ("CPAM", "FPE", "MasaCtrl", "P2P", "PnP", "StyleAligned", "Background")
"""Methods that compare nothing with a threshold."""
LOOKS = ("DiffMask", "BackgroundMask", "Reconstruct", "EmbCtrl", "Composite", "Sweep")
SHOWN = {
    "AEDIT_REFINED": ("RefinedMasks",),
    "AEDIT_MAPS": ("MapViewer", "MapMask", "SelfMaps"),
    "AEDIT_CURVE": ("GuidanceCurve",),
    "AEDIT_BESIDE": ("Intermediate",),
}
"""Nodes that show what a run has left, by its socket."""


def invert(drawing: Drawing) -> None:
    """An inversion, seldom a generated source, and in some cases a better one of it."""
    generated = drawing.one_in(8)
    drawing.inversion = Ref(drawing.call("RecordSource") if generated else drawing.call("Invert", disk_cache=False))
    if drawing.one_in(6):
        improve(drawing)


def improve(drawing: Drawing) -> None:
    """A better inversion in the place of the last one."""
    node = drawing.among(*IMPROVEMENTS) if not drawing.world.joint or drawing.one_in(10) else "FixedPoint"
    on_disk = {"disk_cache": False} if node in {"FixedPoint", "NullText", "DPL"} else {}
    drawing.inversion = Ref(drawing.call(node, **on_disk))


def methods(drawing: Drawing) -> None:
    """None to three methods of the pack on the model, seldom one twice."""
    usual = JOINT_METHODS if drawing.world.joint else SURE if drawing.careful else METHODS
    for _ in range(drawing.among(1, 1, 2, 2, 3, 0)):
        rare = drawing.one_in(12 if drawing.world.joint or drawing.careful else 6)
        node = drawing.among(*METHODS, *RARE) if rare else drawing.among(*usual)
        if drawing.one_in(20) or not any(call.node == node for call in drawing.calls):
            drawing.put(node, **(_object(drawing) if node == "MasaCtrl" else {}))
    if drawing.prop == "background":
        drawing.put("Background", start=0.0)


def _object(drawing: Drawing) -> dict[str, Any]:
    """MasaCtrl's object: none, by masks, or by words; seldom all of it at once."""
    none = dict.fromkeys(("masks", "source_prompt", "target_prompt", "source_words", "target_words"))
    ways = ("none", "masks") if drawing.careful or drawing.world.joint else ("none", "masks", "words")
    way = drawing.among(*ways)
    if drawing.one_in(12):
        return {}
    if way == "words":
        return {"masks": None}
    return {**none, "masks": drawing.edit_masks("MasaCtrl")} if way == "masks" else none


def sample(drawing: Drawing) -> None:
    """One sampler, or two in a row; mostly behind Edit Setup."""
    plain = drawing.prop in {"alone", "whole"}
    given = {
        "positive": drawing.conditioning("target"),
        "negative": drawing.conditioning("negative"),
        "cfg": drawing.among(7.5, 1.0, 3.0, 0.0, 30.0),
        "sampler_name": drawing.among(*(SAMPLER_NAMES[:3] if plain else SAMPLER_NAMES)),
    }
    if drawing.prop in {"", "rerun"} and drawing.one_in(8):
        latent = drawing.given("latent_image", "LATENT")
        _k_sampler(drawing, given, latent)
        return
    setup = drawing.call("Setup", record_turn=drawing.one_in(8))
    drawing.model = Ref(setup)
    whole = drawing.world.joint and not drawing.one_in(10)
    ways = ("KSampler", "custom") if whole else ("KSampler", "custom", "split", "advanced")
    way = "split" if drawing.prop == "whole" else drawing.among(*ways)
    if way == "KSampler":
        _k_sampler(drawing, given, Ref(setup, 3))
    elif way == "advanced":
        _advanced(drawing, given, Ref(setup, 3))
    else:
        _custom(drawing, given, setup, way == "split")


def _k_sampler(drawing: Drawing, given: dict[str, Any], latent: Any) -> None:
    schedule = {"steps": drawing.among(STEPS, 1, 2), "scheduler": drawing.among("ddim_uniform", "normal", "karras")}
    rest = {"seed": drawing.among(0, 5), "denoise": drawing.among(1.0, 0.5), "latent_image": latent}
    _sampled(drawing, "KSampler", model=drawing.model, **schedule, **rest, **given)


def _advanced(drawing: Drawing, given: dict[str, Any], latent: Any) -> None:
    """KSampler (Advanced) twice: the second one goes on where the first ends."""
    steps = drawing.draw(st.integers(2, STEPS))
    middle = drawing.draw(st.integers(0, steps) if drawing.one_in(6) else st.integers(1, steps - 1))
    common = {"model": drawing.model, "noise_seed": 5, "steps": steps, "scheduler": "ddim_uniform", **given}
    first = {"start_at_step": 0, "end_at_step": middle, "return_with_leftover_noise": "enable"}
    added = drawing.among("disable", "enable")
    _sampled(drawing, "KSamplerAdvanced", add_noise=added, latent_image=latent, **first, **common)
    second = {"start_at_step": middle, "end_at_step": 10000, "return_with_leftover_noise": "disable"}
    last = drawing.made["sampled"][-1]
    _sampled(drawing, "KSamplerAdvanced", add_noise="disable", latent_image=last, **second, **common)


def _custom(drawing: Drawing, given: dict[str, Any], setup: str, split: bool) -> None:
    common = {"model": drawing.model, "noise": Ref(setup, 1), **given}
    whole, latent = Ref(setup, 2), Ref(setup, 3)
    if split:
        drawing.calls.append(Call("parts", "SplitSigmas", {"sigmas": whole, "step": drawing.among(1, 2)}))
        _sampled(drawing, "SamplerCustomAdvanced", sigmas=Ref("parts"), latent_image=latent, **common)
        whole, latent = Ref("parts", 1), drawing.made["sampled"][-1]
    _sampled(drawing, "SamplerCustomAdvanced", sigmas=whole, latent_image=latent, **common)


def _sampled(drawing: Drawing, node: str, **given: Any) -> None:
    drawing.made.setdefault("sampled", []).append(Ref(drawing.call(node, **given)))


def show(drawing: Drawing) -> None:
    """The nodes that show what the run has left."""
    for kind, nodes in SHOWN.items():
        if drawing.made.get(kind) and not drawing.one_in(3):
            drawing.call(drawing.among(*nodes))


@st.composite
def edit_cases(draw: Any, kinds: tuple[str, ...], prop: str) -> Case:
    """Methods alone and by two and three, sampled and shown."""
    drawing = Drawing(draw, draw(drawn_worlds(kinds, prop)), prop)
    drawing.begin()
    invert(drawing)
    methods(drawing)
    sample(drawing)
    show(drawing)
    return drawing.case()


@st.composite
def inversion_cases(draw: Any, kinds: tuple[str, ...], prop: str) -> Case:
    """Inversions of every kind, and what looks at images, prompts and inversions without editing."""
    drawing = Drawing(draw, draw(drawn_worlds(kinds, prop)), prop)
    drawing.begin()
    recorded = drawing.one_in(4)
    if recorded:
        drawing.put("RecordMaps", prompt=Ref(drawing.prompts["source"].name, 1))
    invert(drawing)
    drawing.model = Ref("model")
    drawing.made["sampled"] = [drawing.inversion]
    if recorded:
        drawing.call(drawing.among(*SHOWN["AEDIT_MAPS"]))
    for _ in range(drawing.among(1, 0, 2)):
        improve(drawing)
    if prop == "pixels" or drawing.one_in(2):
        node = "Composite" if prop == "pixels" else drawing.among(*LOOKS)
        drawing.call(node, **({"edited": Image(2)} if node == "Composite" else {}))
    return drawing.case()
