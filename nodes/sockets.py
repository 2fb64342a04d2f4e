"""The pack's own socket types and the texts that several nodes share."""

from __future__ import annotations

from comfy_api.latest import io

InversionSocket = io.Custom("AEDIT_INVERSION")
EditMasksSocket = io.Custom("AEDIT_MASKS")
RegionsSocket = io.Custom("AEDIT_REGIONS")
RefinedSocket = io.Custom("AEDIT_REFINED")
PromptSocket = io.Custom("AEDIT_PROMPT")
MapsSocket = io.Custom("AEDIT_MAPS")
CurveSocket = io.Custom("AEDIT_CURVE")
CATEGORY = "attention edit"
ALL, NONE = "all", "none"
MAP_SIZES = ["quarter", "half", "full", "eighth", ALL]
"""Layers by the side of their maps as a share of the latent's, for word maps; self-attention's can be left out."""
SELF_SIZES = [NONE, *MAP_SIZES[:-1]]


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
