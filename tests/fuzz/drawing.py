"""Draws cases: widgets by the nodes' own schemas, sockets from what is there, in graphs as people build them.

Most values are such as people choose; a share is not, and must be refused in words. Where a number only costs time, it
is kept small.
"""

from __future__ import annotations

from typing import Any

import comfy.samplers
import every_method
import worlds
from cases import Call, Case, Ref
from hypothesis import strategies as st
from worlds import Image, Latent, Mask, Sigmas, Text, World

WORDS = ("a", "cat", "dog", "red", "on", "mat", "the", "house", "cat", "bright", "photo")
ODD_TEXTS = (
    "",
    " ",
    "BREAK",
    "a cat BREAK a dog",
    "a (cat:1.3) on a mat",
    "((a dog)) [on] a mat",
    "a (cat",
    "cat) a",
    "a (dog:abc) (cat:)",
    "a 😀 cat 🐈‍⬛",
    "don't; a cat, a cat... (cat)!?",
    "cat cat cat cat",
    "a \\(cat\\)",
    "embedding:none a cat",
    "a\ncat\n\non a mat",
    "ﬁne ＣＡＴ naïve 猫",
    "a photo of a cat " * 16,
    "cat " * 75,
)
ROLES = {"source": "source", "source_prompt": "source", "negative": "negative", "reference": "negative"}
ROLES |= {"negative_prompt": "negative"}
"""The prompt that an input is for; all others are for the target."""
STEPS = 3
"""Most steps of an inversion."""
SMALL = {
    "steps": (1, STEPS),
    "inner_steps": (0, 1),
    "iterations": (1, 2),
    "null_iterations": (1, 1),
    "maps": (1, 2),
    "fine_steps": (0, 6),
    "flow_iterations": (1, 3),
    "clusters": (2, 5),
    "every": (1, 3),
    "first_layer": (-1, 16),
    "retain_layer": (-1, 16),
    "sharpen": (0, 2),
    "feather": (0, 20),
    "occurrence": (0, 2),
}
"""Ints whose largest values only take time, or are beyond all layers."""
LAYER_RANGES = ("3-13", "0-0", "0-15", "15-3", "2", "1-99", "", "x", "-1-2", "10-15, 2")
SEEDS = (0, 1, 7, 2**64 - 2)
"""The largest one is a seed that the host's own noise of ancestral samplers can still count on from."""
METHODS = ("CPAM", "FPE", "MasaCtrl", "P2P", "PnP", "StyleAligned", "Background", "LocalBlend", "Proximal", "MAG")
JOINT_METHODS = ("CPAM", "FPE", "MasaCtrl", "Background")
RARE = ("MaSaFusion", "RegionPrompts", "RecordMaps")
SAMPLER_NAMES = ("euler", "ddim", "heun", "dpmpp_2m", "euler_ancestral", *comfy.samplers.SAMPLER_NAMES)

OF_INVERSIONS = ("flow_solver", "sigmas")
"""Inputs that change an inversion alone: edits of UNets are drawn without them, so that more of them run."""


class Drawing:
    """A case in the making.

    Attributes:
        prop: the property that will be checked, to which the case should lend itself.
        model, inversion: those to put the next method on.
        made: what calls have given, by the socket's type; "sampled" are samplers' latents.
    """

    def __init__(self, draw: Any, world: World, prop: str = "") -> None:
        self.draw, self.world, self.prop = draw, world, prop
        self.calls: list[Call] = []
        self.model, self.inversion = Ref("model"), Ref("model")
        self.texts: dict[str, str] = {}
        self.made: dict[str, list[Ref]] = {}
        self.masks: Ref | None = None

    @property
    def careful(self) -> bool:
        """Whether two ways are compared up to rounding, so that nothing may be cut by a threshold."""
        return self.prop in {"packed", "alone", "whole"}

    def one_in(self, count: int) -> bool:
        """True for one draw of so many; false is what shrinking goes to."""
        return self.draw(st.integers(0, count - 1)) == count - 1

    def among(self, *values: Any) -> Any:
        """One of some values; the first is the simplest."""
        return self.draw(st.sampled_from(values))

    def call(self, node: str, **given: Any) -> str:
        """Add a call: its other inputs are drawn as the node's schema has them. Returns its name."""
        if node in schemas():
            for socket in schemas()[node].inputs:
                if socket.id not in given and not (socket.optional and self.one_in(4)):
                    given[socket.id] = self.value(node, socket)
        given = {key: value for key, value in given.items() if value is not None}
        name = f"{node.lower()}{sum(call.node == node for call in self.calls) or ''}"
        self.calls.append(Call(name, node, given))
        if node in schemas():
            for place, output in enumerate(schemas()[node].outputs):
                self.made.setdefault(output.get_io_type(), []).append(Ref(name, place))
        return name

    def value(self, node: str, socket: Any) -> Any:
        """A value for an input: a widget's, or what is connected."""
        kind = socket.get_io_type()
        if socket.id in OF_INVERSIONS and not (self.world.joint or self.prop in {"rerun", "saved", "pixels"}):
            return getattr(socket, "default", None)
        widget = getattr(self, f"_{kind.lower()}", None) if kind in WIDGETS else None
        return self.socket(node, socket.id, kind) if widget is None else widget(socket)

    def _combo(self, socket: Any) -> Any:
        fitting = [option for option in socket.options if self.world.joint or "(transformers)" not in option]
        default = getattr(socket, "default", None) or fitting[0]
        return self.among(default, *fitting) if not self.one_in(30) else self.among(*socket.options)

    def _boolean(self, socket: Any) -> bool:
        return bool(socket.default) ^ self.one_in(3)

    def _float(self, socket: Any) -> float:
        low, high = socket.min, socket.max
        return self.among(*[socket.default] * 6, low, high, round(low + 0.4 * min(high - low, 10), 4))

    def _int(self, socket: Any) -> int:
        if "seed" in socket.id:
            return min(self.among(*SEEDS), socket.max)
        low, high = SMALL.get(socket.id, (socket.min, socket.max))
        low = max(low, socket.min)
        if socket.id == "steps" and not self.one_in(20):
            low = 2  # one step from the first level to itself is refused
        return self.draw(st.integers(low, high))

    def _string(self, socket: Any) -> str:
        if socket.id == "layer_range":
            return self.among(*LAYER_RANGES) if self.one_in(4) else "0-2"
        if socket.id in {"weights", "windows"}:
            number = self.among("2", "0", "-1.5", ".5") if socket.id == "weights" else self.among("0-0.4", "1-0", "0-1")
            odd = ("", "cat", "cat: x", f"cat#2: {number}", ":", f"cat: {'9' * 400}", f"a: {number}\n\na: 2")
            return self.among(*odd) if self.one_in(4) else self.among("", f"{self.words('target')}: {number}")
        if socket.id == "chosen":
            return self.among("1", "2", "", "cat", "9", "1, 2", "0")
        if socket.id == "values":
            return self.among("0, 0.4", "", "a", ",,", "1")
        text = "source" if socket.id in {"source_words", "nouns"} else "target"
        if socket.id in {"negative_words", "subtract"} and not self.one_in(4):
            return ""
        return self.words("negative" if socket.id == "negative_words" else text)

    def words(self, text: str) -> str:
        """Words to be named: mostly of a prompt."""
        known = self.texts.get(text, "").split() or ["cat"]
        odd = ("", "zebra", "cat#2", "cat, dog", ",", "😀", "a cat", known[-1] + ", " + known[0])
        return self.among(*odd) if self.one_in(8) else self.among(*known)

    def text(self, name: str) -> str:
        """A prompt: a few words, seldom an odd one."""
        plain = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)
        self.texts[name] = self.among(*ODD_TEXTS) if self.one_in(4) else self.draw(plain)
        return self.texts[name]

    def mask(self) -> Mask:
        """A mask, mostly a good one of any size."""
        what = self.among(*worlds.MASKS[:5]) if not self.one_in(5) else self.among(*worlds.MASKS)
        top, left = self.among(0.25, 0.0, 0.6), self.among(0.25, 0.0, 0.6)
        return Mask(what, top, left, self.among(0.5, 0.3, 0.9), self.among(8, 8, 1, 3, 8.5, 16))

    def prompt(self, name: str) -> str:
        """A Prompt with Words; of a transformer, whose text encoders are too large, only its words count."""
        if self.world.joint:
            self.texts[name] = "a cat"
        text = self.texts[name] if name in self.texts else self.text(name)
        self.texts[name] = text
        learned = self.inversion if name == "target" and self.inversion.name.startswith("dpl") else None
        return self.call("Prompt", clip=Ref("clip"), text=text, learned_words=learned)

    def conditioning(self, name: str) -> Any:
        """What a prompt encodes to."""
        if self.world.joint:
            return Text({"source": 5, "target": 2, "negative": 3}[name], self.among(12, 12, 7))
        return self.prompts[name]

    def begin(self) -> None:
        """The prompts of source, target and negative."""
        self.prompts: dict[str, Ref] = {}
        for name in ("source", "target", "negative"):
            if name == "target" and self.one_in(8):
                self.texts["target"] = self.texts["source"]
            if name == "negative" and not self.one_in(4):
                self.texts["negative"] = ""
            self.prompts[name] = Ref(self.prompt(name))

    def socket(self, node: str, name: str, kind: str) -> Any:  # noqa: PLR0911 (one return for each)
        """What is connected to an input of a kind."""
        if kind == "MODEL":
            return self.model
        if kind == "AEDIT_INVERSION":
            return None if node == "Prompt" else self.inversion
        if kind in {"AEDIT_PROMPT", "CONDITIONING"}:
            role = ROLES.get(name, "target")
            role = role if not self.one_in(25) else self.among("source", "target", "negative")
            if kind == "AEDIT_PROMPT":
                return Ref(self.prompts[role].name, 1)
            return self.conditioning(role) if not self.one_in(25) else Text(9, self.among(77, 154, 20))
        if kind == "AEDIT_MASKS":
            return self.edit_masks(node)
        if kind in {"MASK", "IMAGE", "LATENT"}:
            return self.given(name, kind)
        if kind == "AEDIT_REGIONS":
            return self.regions(node)
        return self.later(name, kind)

    def given(self, name: str, kind: str) -> Any:
        """A mask, a picture or a latent; `after` is a sampler's."""
        if kind == "MASK":
            return self.mask()
        if kind == "IMAGE":
            return Image(self.among(1, 2), self.among(0, 0, 3, 8), self.among(3, 3, 4))
        if name == "after":
            return self.made["sampled"][-1]
        odd = self.among("zero", "strided", "nan", "channels", "larger") if self.one_in(12) else "random"
        return Latent(self.among(1, 2), odd)

    def later(self, name: str, kind: str) -> Any:
        """What a run has left, and what tells which run it was."""
        if kind in {"*", "LATENT,IMAGE"}:
            return self.among(self.made["sampled"][-1], self.made["sampled"][0], self.inversion)
        if kind == "SIGMAS":
            scheduler, steps = self.among("simple", "karras", "normal"), self.among(2, 3)
            return Sigmas(scheduler, steps, self.one_in(20)) if self.one_in(3) else None
        if kind == "AEDIT_MASKS,MASK":
            return self.edit_masks("Composite") if self.one_in(2) else self.mask()
        return {"CLIP": Ref("clip"), "VAE": Ref("vae")}.get(kind) or self.made[kind][-1]

    def edit_masks(self, node: str) -> Ref:
        """Edit masks, the same as before or new ones, seldom refined ones."""
        if self.masks is None or self.one_in(3):
            self.masks = Ref(self.call("Masks"))
        if node == "CPAM" and not self.careful and not self.world.joint and self.one_in(4):
            return Ref(self.call("RefineMask", masks=self.masks))
        return self.masks

    def regions(self, node: str) -> Ref | None:
        """One region or two."""
        if node == "Region":
            return self.made["AEDIT_REGIONS"][-1] if self.made.get("AEDIT_REGIONS") else None
        for _ in range(self.among(1, 2)):
            name = self.call("Region")
        return Ref(name)

    def put(self, node: str, **given: Any) -> str:
        """A method on the model."""
        name = self.call(node, **given)
        self.model = Ref(name)
        return name

    def case(self) -> Case:
        """The case that has been drawn."""
        return Case(self.world, tuple(self.calls), self.prop)


WIDGETS = {"COMBO", "BOOLEAN", "FLOAT", "INT", "STRING"}


def schemas() -> dict[str, Any]:
    """Schemas by node, without the pack's prefix."""
    if not _SCHEMAS:
        found = every_method.CLASSES.items()
        _SCHEMAS.update({name.removeprefix("AttnEdit"): node.define_schema() for name, node in found})
    return _SCHEMAS


_SCHEMAS: dict[str, Any] = {}


@st.composite
def drawn_worlds(draw: Any, kinds: tuple[str, ...], prop: str) -> World:
    """A world of one of some kinds; its sides are odd, tiny, or 1 to 8 (not where `properties` needs exactness)."""
    exact = prop in {"alone", "packed", "whole"}
    narrow = () if exact and not set(kinds) & set(worlds.JOINT) else ((1, 8), (3, 1), (16, 2))
    height, width = draw(st.sampled_from([(4, 4), (5, 3), (8, 6), (7, 9), (3, 3), *narrow]))
    halves = () if exact else ("bfloat16", "float16")
    dtype, batch = draw(st.sampled_from(["float32"] * 6 + [*halves])), draw(st.sampled_from([1, 1, 2, 3]))
    kind = draw(st.sampled_from(kinds))
    if kind in worlds.JOINT and kind not in {"Flux2"}:  # patches of two cells, as the host pads them
        height, width = height + height % 2, width + width % 2
    return World(kind, dtype, height, width, max(batch, 2 if prop == "alone" else 1))
