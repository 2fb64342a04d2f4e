"""What several nodes share: their inputs and outputs, and the one way in which a method is put on a model."""

from __future__ import annotations

from typing import Any

from ..attention.engine.control import Control
from ..attention.engine.install import install
from ..attention.engine.layers import LAYER_RULES
from ..host.schemas import io
from ..inversion.record import Inversion
from .sockets import InversionSocket, MapsSocket, PromptSocket

CUSTOM_RANGE = "range below"


def put(model: Any, control: Control, inversion: Inversion | None = None, one_call: bool = False) -> io.NodeOutput:
    """A node's output: a clone of the MODEL with a method on it.

    Args:
        inversion: the source image, if the method reads one.
        one_call: run the source in the edit's UNet call; once a node has asked for it, the whole model has it.

    Raises:
        ValueError: see `install`.
    """
    return io.NodeOutput(install(model, control, inversion, packed=one_call or None))


MAPS_LAYERS = (
    "Layers whose self-attention maps are the source's. More and finer ones keep more of the structure; all of them "
    "freeze the image."
)
"""What the layers of methods do that take the source's maps."""


def layers_inputs(rule: str = LAYER_RULES[0], tooltip: str = MAPS_LAYERS, own: tuple[str, ...] = ()) -> list[io.Input]:
    """A rule for layers, and a range for those who want another.

    Args:
        rule: the default. tooltip: what happens in these layers. own: rules that the method alone has.
    """
    return [
        io.Combo.Input(
            "layers",
            options=[*own, *LAYER_RULES, CUSTOM_RANGE],
            default=rule,
            tooltip=tooltip,
            advanced=True,
        ),
        io.String.Input(
            "layer_range",
            default="3-13",
            tooltip="Layer numbers in the order in which the model calls them, from 0, both ends included; used when "
            "layers says so.",
            advanced=True,
        ),
    ]


def layer_rule(layers: str, layer_range: str) -> str:
    """The rule that the two inputs of `layers_inputs` stand for, as `layers.layers_of` takes it."""
    return layer_range if layers == CUSTOM_RANGE else layers


def maps_inputs() -> list[io.Input]:
    """Recorded maps, and the node that has to run before they are there."""
    return [
        MapsSocket.Input("maps", tooltip="From Record Attention Maps."),
        io.AnyType.Input(
            "after",
            tooltip="The output of the node that ran the recorded model: the sampler's latent, or the inversion. It "
            "only says that this node waits for it.",
        ),
    ]


def sharpen_input() -> io.Input:
    """Sharpening by the self-attention map."""
    return io.Int.Input(
        "sharpen",
        default=0,
        min=0,
        max=8,
        tooltip="How often the self-attention map is applied to the word's map: it fills objects and follows their "
        "edges. Needs self_maps in Record Attention Maps. 0 is off.",
        advanced=True,
    )


def smoothing_input() -> io.Input:
    """Blur of the map."""
    return io.Float.Input(
        "smoothing",
        default=0.5,
        min=0.0,
        max=4.0,
        step=0.1,
        tooltip="Gaussian blur of the map, in cells of the layer. 0 is off.",
        advanced=True,
    )


def source_prompt_input() -> io.Input:
    """The source's words."""
    return PromptSocket.Input(
        "source_prompt",
        tooltip="Words of the source: the Prompt with Words whose conditioning the inversion was made with.",
    )


def target_prompt_input() -> io.Input:
    """The edit's words."""
    return PromptSocket.Input(
        "target_prompt", tooltip="Words of the edit: the Prompt with Words that the sampler's positive comes from."
    )


def model_input() -> io.Input:
    """The MODEL that an edit goes on."""
    return io.Model.Input(
        "model",
        tooltip="The model to edit with. Load LoRAs and put other packs' attention patches before this node.",
    )


def model_output(then: str = "further edits or Edit Setup") -> io.Output:
    """The MODEL with the edit on it; `then`: what to connect it to."""
    return io.Model.Output(display_name="model", tooltip=f"The same model with this edit; connect {then}.")


def inversion_input() -> io.Input:
    """The source image."""
    return InversionSocket.Input(
        "inversion", tooltip="The source image, from any inversion node, Load Inversion or Source from Prompt."
    )


def disk_cache_input() -> io.Input:
    """Whether an inversion is kept on disk."""
    return io.Boolean.Input(
        "disk_cache",
        default=False,
        optional=True,
        tooltip="Keep the result in ComfyUI's user folder (2 GB at most), so that the same image, prompt, model and "
        "settings need no second inversion after a restart.",
        advanced=True,
    )


def fraction_input(name: str, default: float, tooltip: str, advanced: bool = False, optional: bool = False) -> io.Input:
    """A number in 0..1: a share of the steps, a threshold, a strength."""
    return io.Float.Input(
        name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip, advanced=advanced, optional=optional
    )


def guidance_input(default: float, tooltip: str) -> io.Input:
    """A scale of classifier-free guidance."""
    return io.Float.Input("guidance", default=default, min=1.0, max=30.0, step=0.1, tooltip=tooltip)


def one_call_input() -> io.Input:
    """Whether the source is packed into the edit's call."""
    return io.Boolean.Input(
        "one_call",
        default=False,
        tooltip="Run the source in the same UNet call as the edit: a little faster on a GPU, needs more memory, same "
        "result up to rounding.",
        advanced=True,
    )
