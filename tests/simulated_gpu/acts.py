"""Every method and inversion of the pack as a run of a tiny model, on any device and in any type of weights."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any

import device
import edits
import tiny
import torch
from attention_edit.attention.engine import install as engine
from attention_edit.attention.engine.recorded import Keeping
from attention_edit.attention.maps.heat import HeatOptions, heat_map
from attention_edit.attention.maps.recorder import recorder
from attention_edit.attention.maps.segments import find_segments
from attention_edit.attention.masks.refinement import Refinement
from attention_edit.attention.methods.background import ExactBackground
from attention_edit.attention.methods.cpam import CPAM
from attention_edit.attention.methods.fpe import FPE
from attention_edit.attention.methods.local_blend import LocalBlend
from attention_edit.attention.methods.mag.control import MAG
from attention_edit.attention.methods.mag.install import add_guidance
from attention_edit.attention.methods.masactrl import MasaCtrl, WordMasks
from attention_edit.attention.methods.masafusion import MaSaFusion
from attention_edit.attention.methods.p2p import P2P
from attention_edit.attention.methods.pnp import PnP
from attention_edit.attention.methods.proximal import SOFT, ProximalGuidance, ProximalHold
from attention_edit.attention.methods.regions import RegionPrompts, make_region
from attention_edit.attention.methods.style_aligned import StyleAligned
from attention_edit.host.families import family_of
from attention_edit.inversion.record import Inversion
from comfy.cli_args import args
from comfy.model_management import load_models_gpu
from comfy.patcher_extension import WrappersMP
from counts import Counts
from prompts import prompt
from torch import Tensor

CAT, DOG, BLACK = prompt("a cat on a mat"), prompt("a dog on a mat"), prompt("a black cat on a mat")
STEPS = 3
"""Noise levels of the schedule; a run takes one step less. SDXL with its 70 layers takes a single one."""
STUB = torch.tensor([14.6, 0.0])
V = {"SD1": False, "SD2": True, "SDXL": False}


@dataclass(frozen=True)
class Place:
    """What a run is made with.

    Attributes:
        device: where the model runs. kind: of tiny.tiny_model. dtype: of its weights.
        text_there: text and latents lie on the device too, as with the host's --gpu-only.
    """

    device: torch.device
    kind: str = "SD1"
    dtype: torch.dtype = torch.float32
    text_there: bool = False

    @property
    def model(self) -> Any:
        """The tiny model, made once."""
        return _model(self.device, self.kind, self.dtype)

    def text(self, seed: int) -> list[Any]:
        """CONDITIONING of random states where the host's text encoder would leave it."""
        given = tiny.prompt(seed, self.kind)
        if not self.text_there:
            return given
        options = {name: value.to(self.device) for name, value in given[0][1].items()}
        return [[given[0][0].to(self.device), options]]

    def latent(self) -> dict[str, Tensor]:
        """LATENT of the source image."""
        found = tiny.latent(1)
        return {"samples": found.to(self.device) if self.text_there else found}

    @contextmanager
    def flags(self) -> Iterator[None]:
        """The host with --gpu-only, if the text lies on the device."""
        before, args.gpu_only = args.gpu_only, self.text_there
        try:
            yield
        finally:
            args.gpu_only = before


@cache
def _model(device: torch.device, kind: str, dtype: torch.dtype) -> Any:
    return tiny.tiny_model(kind, V[kind], dtype, device=device)


@cache
def source(kind: str) -> Inversion:
    """An inversion by the CPU's model in float32: runs of all places read the same one."""
    return edits.invert(tiny.tiny_model(kind, V[kind], device=tiny.CPU), kind, steps=STEPS - (kind == "SDXL"))


Controls = Callable[[Place], tuple[Any, ...]]

ALWAYS = (0.0, 1.0)
REFINED = Refinement((2, 3, 5), 77, 0.3, 0.45)
MASKS = (edits.box(), edits.box(16, 24, 64, 40))


def _regions(place: Place) -> RegionPrompts:
    left, right = edits.box(0, 0, 128, 64), edits.box(0, 64, 128, 64)
    return RegionPrompts((make_region(left.float(), place.text(6)), make_region(right.float(), place.text(7))))


def _recorder(place: Place) -> Any:
    return recorder(DOG, family_of(place.model), (4,), (4,), 0.0, 1.0)


def _proximal(_: Place) -> tuple[Any, ...]:
    part = ProximalGuidance(rule=SOFT)  # the hard rule jumps at its threshold, which rounding moves
    return part, ProximalHold(part, 0.0)


PLAIN = "plain"
METHODS: dict[str, Controls] = {
    PLAIN: lambda _: (),
    "CPAM": lambda _: (CPAM(edits.masks(), normal_share=0.0),),
    "CPAM keep": lambda _: (CPAM(edits.masks(retain=True), retain_start=0.0),),
    "CPAM refined": lambda _: (CPAM(edits.masks().refined(REFINED), normal_share=0.0),),
    "FPE": lambda _: (FPE(end=1.0),),
    "FPE both halves": lambda _: (FPE(end=1.0, both_halves=True),),
    "MasaCtrl": lambda _: (MasaCtrl(start=0.0),),
    "MasaCtrl masks": lambda _: (MasaCtrl(start=0.0, masks=MASKS),),
    "MasaCtrl union": lambda _: (MasaCtrl(start=0.0, masks=MASKS, union=True),),
    "MasaCtrl words": lambda _: (MasaCtrl(start=0.0, words=WordMasks(CAT, DOG, "cat", "dog")),),
    "P2P swap": lambda _: (P2P(CAT, DOG, self_window=ALWAYS),),
    "P2P refine": lambda _: (P2P(CAT, BLACK, self_window=ALWAYS),),
    "Local Blend": lambda _: (P2P(CAT, DOG, self_window=ALWAYS), LocalBlend(CAT, DOG, ["cat"], ["dog"], start=0.0)),
    "PnP": lambda _: (PnP(1.0, 1.0),),
    "PnP negative": lambda place: (PnP(1.0, 1.0, place.text(8)),),
    "Proximal": _proximal,
    "StyleAligned": lambda _: (StyleAligned(),),
    "MaSaFusion": lambda _: (MaSaFusion(edits.box(), seed=1),),
    "Exact Background": lambda _: (ExactBackground(edits.box(), 0.0),),
    "Regions": lambda place: (_regions(place),),
    "Regions on CPAM": lambda place: (_regions(place), CPAM(edits.masks(), normal_share=0.0)),
    "Record Maps": lambda place: (_recorder(place),),
}
BY_THRESHOLD = {"CPAM refined", "MasaCtrl words", "Local Blend", "Proximal"}
"""Methods that compare what the network says with a threshold: what lies on it goes either way in half precision."""


def edit(
    place: Place,
    name: str,
    packed: bool = False,
    inversion: Inversion | None = None,
    guided: MAG | None = None,
    on_pass: Callable[[], None] | None = None,
    keeping: Keeping | None = None,
    **options: Any,
) -> Tensor:
    """The latent (1, 4, h, w), on the CPU, that a method leaves on a place.

    `on_pass` is called ahead of each pass through the UNet.
    """
    inversion = inversion or source(place.kind)
    with place.flags():
        if place.text_there:
            inversion = replace(inversion, conditioning=place.text(5))
        model = place.model
        for control in METHODS[name](place):
            model = engine.install(model, control, inversion, packed)
        if guided is not None:
            model = add_guidance(model, guided, inversion)
        model = engine.pin(model, inversion, tuple(inversion.schedule), keeping=keeping)
        if on_pass is not None:
            model.add_wrapper(WrappersMP.DIFFUSION_MODEL, lambda run, *a, **k: (on_pass(), run(*a, **k))[1])
        start = torch.zeros_like(place.latent()["samples"])
        return tiny.sample(model, place.text(2), place.text(3), start, STUB, **options).cpu()


@dataclass(frozen=True)
class Measured:
    """A run, what it cost, and the waits and copies to the device of each step after the first.

    The first step also prepares the run.
    """

    latent: Tensor
    counts: Counts
    steps: tuple[tuple[int, int], ...]


def measured(place: Place, name: str, packed: bool = False, guided: MAG | None = None) -> Measured:
    """A method's run on the device, done once for all tests."""
    return _measured(place, name, packed, guided)


@cache
def _measured(place: Place, name: str, packed: bool, guided: MAG | None) -> Measured:
    load_models_gpu([place.model])
    seen: list[tuple[int, int]] = []
    with device.counted() as counts:
        look = device.snapshot()
        latent = edit(place, name, packed, guided=guided, callback=lambda *_: seen.append(look()))
        gc.collect()
    assert len(seen) == STEPS - 1
    steps = tuple((after[0] - before[0], after[1] - before[1]) for before, after in pairwise(seen))
    return Measured(latent, counts, steps)


def guidance(**values: Any) -> MAG:
    """MAG-Edit on two words in a box."""
    return MAG(((3,), (4, 5)), edits.box(), **{"iterations": 2, "end": 1.0, **values})


def recorded_maps(place: Place) -> dict[str, Tensor]:
    """What the map nodes show of a run: a word's heat, self-attention's regions."""
    control = _recorder(place)
    with place.flags():
        model = engine.install(place.model, control, source(place.kind))
        model = engine.pin(model, source(place.kind), tuple(source(place.kind).schedule))
        start = torch.zeros_like(place.latent()["samples"])
        tiny.sample(model, place.text(2), place.text(3), start, STUB)
        recording, words = control.maps.recording, DOG.find("dog")
        found = find_segments(recording, 2, {"dog": words})[0]
    return {
        "heat": heat_map(recording, words, HeatOptions(sharpen=1)),
        "self": found.features,
    }


gc.collect()
gc.freeze()  # what was imported is not looked at again by every collection: a third of a second each
