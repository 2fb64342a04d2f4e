"""Interrupts and errors in every kind of run, from its first step to its last: the next run is as if nothing had been.

The nodes before the one that is cut stay cached, as on a host: its second run has the same models and objects.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import comfy.model_management
import pytest
import torch
from attention_edit.attention.engine.run import Run
from cases import Call, Case, Ref, tensors
from comfy.ldm.flux.layers import DoubleStreamBlock
from comfy.ldm.modules.attention import SpatialTransformer
from drawing import schemas
from outcomes import left_on, same
from worlds import Latent, Mask, Text, World

STEPS = 3
CUTS_EACH = 6
"""Cuts of each of the runs, of which there are more than twenty: evenly from its first block to its last."""
CUTS = (comfy.model_management.InterruptProcessingException, RuntimeError, torch.OutOfMemoryError)
"""What is raised: by the host when the user cancels, by a kernel, when memory is short."""


class Counted:
    """Counts the transformer blocks that have been called, backward passes' too, and raises in one of them."""

    def __init__(self) -> None:
        self.calls, self.at, self.error = 0, -1, RuntimeError

    def __call__(self) -> None:
        self.calls += 1
        if self.calls - 1 == self.at:
            raise self.error("cut")


@contextmanager
def counting() -> Iterator[Counted]:
    """Within it, blocks of UNets and transformers are counted."""
    counted = Counted()

    def watched(own: Any) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            counted()
            return own(*args, **kwargs)

        return forward

    with pytest.MonkeyPatch.context() as patch:
        for block in (SpatialTransformer, DoubleStreamBlock):
            patch.setattr(block, "forward", watched(block.forward))
        yield counted


def call(name: str, node: str, **given: Any) -> Call:
    """A call with the widgets' defaults for what is not given."""
    defaults = {}
    for socket in schemas()[node].inputs if node in schemas() else ():
        first = getattr(socket, "options", None) or [None]
        default = getattr(socket, "default", None)
        defaults[socket.id] = first[0] if default is None else default
    return Call(name, node, {key: value for key, value in {**defaults, **given}.items() if value is not None})


@contextmanager
def runs_made() -> Iterator[WeakSet[Run]]:
    """The engine's runs that are made within it, as long as something holds them.

    Garbage is looked for among what is new: all that was there before takes half a second each time.
    """
    alive: WeakSet[Run] = WeakSet()
    own = Run.__init__

    def init(run: Run, *args: Any, **kwargs: Any) -> None:
        own(run, *args, **kwargs)
        alive.add(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "__init__", init)
        gc.freeze()
        try:
            yield alive
        finally:
            gc.unfreeze()


MODEL, CLIP, INVERSION = Ref("model"), Ref("clip"), Ref("inversion")
BEGIN = (
    call("cat", "Prompt", clip=CLIP, text="a cat on a mat"),
    call("dog", "Prompt", clip=CLIP, text="a dog on a mat"),
    call("none", "Prompt", clip=CLIP, text=""),
    call("masks", "Masks", mask=Mask()),
)
INVERT = call("inversion", "Invert", model=MODEL, latent=Latent(), source=Ref("cat"), steps=STEPS)
ON = {"model": MODEL, "inversion": INVERSION}
WORDS = {"source_prompt": Ref("cat", 1), "target_prompt": Ref("dog", 1)}
SOURCE, NEGATIVE, MASKS = Ref("cat"), Ref("none"), {"masks": Ref("masks")}
MADE: dict[str, Call] = {
    "DDIM": INVERT,
    "generated": call(
        "made", "RecordSource", model=MODEL, positive=SOURCE, negative=NEGATIVE, latent=Latent(), steps=STEPS
    ),
    "fixed point": call("made", "FixedPoint", **ON, negative=NEGATIVE, guidance=2.0, iterations=2),
    "direct": call("made", "Direct", **ON, negative=NEGATIVE, scale=0.5),
    "null text": call("made", "NullText", **ON, negative=NEGATIVE, inner_steps=1, early_stop=0.0),
    "null text in memory": call("made", "NullText", **ON, negative=NEGATIVE, inner_steps=1, save_memory=False),
    "DPL": call(
        "made",
        "DPL",
        **ON,
        clip=CLIP,
        source_prompt=Ref("cat", 1),
        negative=NEGATIVE,
        nouns="cat, mat",
        iterations=1,
        null_iterations=1,
        background=Mask(),
    ),
    "background mask": call("made", "BackgroundMask", **ON, source_prompt=Ref("cat", 1), nouns="cat", clusters=2),
    "difference": call("made", "DiffMask", model=MODEL, latent=Latent(), target=SOURCE, reference=NEGATIVE, maps=2),
    "check": call("made", "Reconstruct", **ON, vae=Ref("vae"), negative=NEGATIVE, guidance=3.0),
}
"""Nodes that run the model themselves."""
GUIDING: dict[str, Any] = {
    "target_prompt": Ref("dog", 1),
    "mask": Mask(),
    "words": "dog",
    "preset": "custom",
    "iterations": 1,
    "end": 0.7,
}
"""MAG-Edit's, of one iteration in a step."""
P2P = call("edited", "P2P", **ON, **WORDS, mode="refine")
EDITS: dict[str, tuple[Call, ...]] = {
    "CPAM": (call("edited", "CPAM", **ON, **MASKS),),
    "CPAM in one call": (call("edited", "CPAM", **ON, **MASKS, one_call=True),),
    "refined": (
        call("refined", "RefineMask", masks=Ref("masks"), prompt=Ref("dog", 1), words="dog"),
        call("edited", "CPAM", **ON, masks=Ref("refined")),
    ),
    "P2P and Local Blend": (
        P2P,
        call(
            "edited",
            "LocalBlend",
            **WORDS,
            inversion=INVERSION,
            model=Ref("edited"),
            source_words="cat",
            target_words="dog",
        ),
    ),
    "PnP": (call("edited", "PnP", **ON, negative=SOURCE),),
    "MAG": (
        P2P,
        call("edited", "MAG", model=Ref("edited"), inversion=INVERSION, **GUIDING),
    ),
    "MAG in low memory": (call("edited", "MAG", **ON, **GUIDING, low_memory=True),),
    "MaSaFusion": (call("edited", "MaSaFusion", **ON, **MASKS),),
    "StyleAligned": (call("edited", "StyleAligned", **ON),),
    "maps": (call("edited", "RecordMaps", model=MODEL, prompt=Ref("dog", 1), self_maps="half"),),
}
"""Methods, whose sampler is cut."""


def sampled(positive: Any, negative: Any) -> tuple[Call, Call]:
    """Edit Setup and a sampler."""
    setup = call("setup", "Setup", model=Ref("edited"), inversion=INVERSION, keep_source="off")
    given = {"positive": positive, "negative": negative, "cfg": 4.0, "sampler_name": "euler"}
    rest = {"model": Ref("setup"), "noise": Ref("setup", 1), "sigmas": Ref("setup", 2), "latent_image": Ref("setup", 3)}
    return setup, call("sampled", "SamplerCustomAdvanced", **rest, **given)


def flux() -> Case:
    """FPE on a transformer."""
    invert = call("inversion", "Invert", model=MODEL, latent=Latent(), source=Text(5, 12), steps=STEPS)
    calls = call("masks", "Masks", mask=Mask()), invert, call("edited", "FPE", **ON)
    return Case(World("Flux"), (*calls, *sampled(Text(2, 12), Text(3, 12))))


GUIDED = ("null text", "null text in memory", "DPL", "MAG", "MAG in low memory")
"""Those of them with ways back."""


def graphs() -> list[torch.Tensor]:
    """Tensors whose making autograd remembers."""
    return [held for held in gc.get_objects() if type(held) is torch.Tensor and held.grad_fn is not None]


CASES = {name: Case(World(), (*BEGIN, INVERT, last)[: 5 if last is INVERT else 6]) for name, last in MADE.items()}
CASES |= {
    name: Case(World(), (*BEGIN, INVERT, *calls, *sampled(Ref("dog"), NEGATIVE))) for name, calls in EDITS.items()
}
CASES["transformer"] = flux()


@pytest.mark.parametrize("name", CASES)
def test_a_cut_run_leaves_nothing(name):
    """At blocks of all its steps, by another error each time."""
    case = CASES[name]
    *before, last = case.calls
    made = Case(case.world, tuple(before)).run()
    with counting() as counted, runs_made() as alive:
        whole = dict(tensors(case.do(last, made)))
        total, on_model = counted.calls, left_on(case.world.model)
        cuts = sorted({i * (total - 1) // (CUTS_EACH - 1) for i in range(CUTS_EACH)})
        assert len(cuts) == CUTS_EACH and cuts[-1] == total - 1
        for at, error in zip(cuts, itertools.cycle(CUTS)):
            counted.calls, counted.at, counted.error = 0, at, error
            try:
                case.do(last, made)
                assert error is torch.OutOfMemoryError and "one call" in name, "it went on"
            except CUTS as raised:
                assert type(raised) is error
            counted.at = -1
            gc.collect()
            assert not alive, "the run that was cut is held"
            assert not (name in GUIDED and graphs()), "a graph is held"
            assert left_on(case.world.model) == on_model
            assert not torch.is_inference_mode_enabled()
            same(whole, dict(tensors(case.do(last, made))))
