"""The blueprints of subgraphs/, a row for each task. Standard library only.

A new workflow becomes a blueprint by one row here and `python demo --blueprints`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MASKED = ("steps", "cfg", "dilation", "seed")
DRAWN = ("steps", "cfg", "seed")
"""Where the mask is taken as it is drawn, Edit Masks does not use dilation."""
WHOLE = ("steps", "cfg")
"""Without random choices: FPE and Plug-and-Play make none, so that a seed would change nothing."""
PAINTED = {"AttnEditMasks.mask": "mask"}
"""In the workflow other nodes stand for what a person paints."""


SHOWN = {"picture": "SaveImage.images", "mask": "MaskPreview.mask"}


@dataclass(frozen=True, eq=False)  # a row is itself and can be a key
class Blueprint:
    """A task, and how its workflow becomes one node.

    Attributes:
        name: the file's and the node's. The front end's search reads nothing else, and of it about thirty letters: it
            says the task, and shortly.
        workflow: the file of workflows/ that it is made of.
        about: what it does, one or two sentences.
        aliases: further words that say the task; front end 1.47 does not read those of installed blueprints.
        texts: the texts that a person writes, in the order of the workflow's nodes: their names, with examples.
        settings: widgets on the node; "steps" are those of all nodes inside, "Type.seed" that of one type.
        given: inputs of nodes ("Type.input") that come from outside whatever the workflow has there, and their names.
        shows: the outputs' names, and the inputs of nodes ("Type.input") that the workflow gives the same; of these
            the workflow may lack some.
    """

    name: str
    workflow: str
    about: str
    aliases: tuple[str, ...]
    texts: Mapping[str, str]
    settings: tuple[str, ...] = MASKED
    given: Mapping[str, str] = field(default_factory=dict)
    shows: Mapping[str, str] = field(default_factory=lambda: SHOWN)

    @property
    def title(self) -> str:
        """The name with the pack's, which tells it from other packs' blueprints."""
        return f"{self.name} (Attention Edit)"


ROWS = (
    Blueprint(
        "Replace or Recolour an Object",
        "cpam-replace",
        "Puts something else in the masked place: another object, colour or material. Say what the place shall show, "
        "not the whole scene; every pixel away from the mask stays.",
        ("recolor", "swap object", "change colour", "change material", "inpaint", "cpam"),
        {"what it becomes": "a blue vase"},
    ),
    Blueprint(
        "Keep an Object and Reshape It",
        "cpam-keep-object",
        "Gives the masked object another pose or shape and keeps its look. Say the object in its new shape.",
        ("change pose", "same look", "change shape", "non-rigid edit", "cpam"),
        {"what it becomes": "a dog lying down"},
    ),
    Blueprint(
        "Change the Background",
        "cpam-background",
        "Draws a new background behind the masked object. Mask what stays; say the new background alone.",
        ("new background", "replace background", "another place", "cpam"),
        {"the new background": "a sandy beach"},
        DRAWN,
    ),
    Blueprint(
        "Remove an Object",
        "cpam-remove",
        "Takes the masked object away and goes on with what is around it. It needs no words.",
        ("erase object", "delete object", "object removal", "clean up", "cpam"),
        {},
        ("steps", "dilation", "seed"),  # both prompts are empty, so that guidance does nothing
    ),
    Blueprint(
        "Add an Object",
        "add-object",
        "Draws something new within the masked region. Paint the region as large as the object shall be.",
        ("insert object", "put in", "draw object", "inpaint", "cpam"),
        {"what appears": "a blue vase"},
        DRAWN,
        PAINTED,
    ),
    Blueprint(
        "Change a Part of an Object",
        "part-edit",
        "Changes the masked part of an object, such as a sleeve or a window, and nothing else of it.",
        ("edit part", "edit region", "detail", "cpam"),
        {"what the part becomes": "a red sleeve"},
        DRAWN,
        PAINTED,
    ),
    Blueprint(
        "Change by Words without a Mask",
        "fpe",
        "Shows something else in the same composition. Say what the whole picture shall show.",
        ("text edit", "no mask", "prompt edit", "same structure", "free-prompt-editing", "fpe"),
        {"what the picture shows": "a photo of a dog in the snow"},
        WHOLE,
    ),
    Blueprint(
        "Change Style without a Mask",
        "pnp",
        "Gives the picture another style, material or season within the same outlines. Say what the whole picture "
        "shall show.",
        ("restyle", "style transfer", "another look", "no mask", "plug-and-play", "pnp"),
        {"what the picture shows": "a pencil drawing of a dog"},
        WHOLE,
    ),
    Blueprint(
        "Swap a Word",
        "p2p-swap",
        "Draws a picture from a caption, and again with other words in it; all else stays. For pictures that the "
        "model draws, not for photographs.",
        ("change a word", "change caption", "prompt-to-prompt", "p2p", "generated image"),
        {"caption before": "a photo of a red car in a street", "caption after": "a photo of a blue car in a street"},
        ("steps", "cfg", "AttnEditRecordSource.seed", "width", "height"),
        shows={"picture": "SaveImage.images", "before": "PreviewImage.images"},
    ),
    Blueprint(
        "Change Several Regions",
        "region-edit",
        "Changes two masked objects at once, each by its own words; everything else stays.",
        ("two objects", "regional prompt", "multiple masks", "several objects", "cpam"),
        {"what it becomes": "a green vase", "what the second becomes": "a red cup"},
    ),
    Blueprint(
        "Replace an Object by Its Name",
        "mask-from-words",
        "Finds a word of the caption in the photograph and puts something else in its place: no mask to paint.",
        ("no mask", "automatic mask", "text mask", "recolor", "cpam"),
        {
            "caption of the photo": "a photo of a red car in a street",
            "word to find": "car",
            "what it becomes": "a blue car",
        },
    ),
    Blueprint(
        "Attention Maps to Mask",
        "mask-from-words",
        "Makes a mask of what a word of the caption means in the photograph, from the model's attention.",
        ("mask from words", "text mask", "automatic mask", "segment by word", "daam"),
        {"caption of the photo": "a photo of a red car in a street", "word to find": "car"},
        ("steps",),
        shows={"mask": "AttnEditMasks.mask"},
    ),
)
