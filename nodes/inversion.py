"""Nodes that make, check, save and load inversions."""

from __future__ import annotations

import os
from typing import Any

from comfy_api.latest import ui
from torch import Tensor

from ..host.schemas import io
from ..inversion import report, store
from ..inversion.ddim_inversion import DDIMInversion
from ..inversion.flow_solvers import FIXED_POINT, FLOW_SOLVERS
from ..inversion.schedule import OFFSETS
from .inputs import disk_cache_input, guidance_input, inversion_input
from .sockets import CATEGORY, InversionSocket

_ALIASES = [
    "invert image",
    "unsampler",
    "direct inversion",
    "ddim inverse",
    "cpam inversion",
    "rf-solver",
    "fireflow",
    "uni-inv",
    "rectified flow inversion",
    "edit photo",
    "photo to noise",
    "real image editing",
]
FLOW_CHOICES = {FIXED_POINT: FIXED_POINT} | {f"{name} (transformers)": name for name in FLOW_SOLVERS}


def _flow_iterations_input() -> io.Input:
    """Calls of the model per step of a rectified flow."""
    return io.Int.Input(
        "flow_iterations",
        default=3,
        min=1,
        max=20,
        tooltip="For rectified flows (Flux, SD3): calls of the model per step. 1 is Euler's inversion, 3 mostly finds "
        "the latent that sampling takes back to the photograph; few steps want more.",
        optional=True,
        advanced=True,
    )


def _flow_solver_input() -> io.Input:
    """How rectified flows are inverted."""
    return io.Combo.Input(
        "flow_solver",
        options=list(FLOW_CHOICES),
        default=FIXED_POINT,
        tooltip="For rectified flows (Flux, SD3). The fixed point and Uni-Inv (one call per step) turn euler's steps "
        "round: sample with euler. RF-Solver (two calls) and FireFlow (one) follow the flow itself: sample with heun "
        "or dpm_2.",
        optional=True,
        advanced=True,
    )


def _sigmas_input() -> io.Input:
    """A schedule in the place of the model's own."""
    return io.Sigmas.Input(
        "sigmas",
        optional=True,
        tooltip="A schedule of a scheduler node for this model, which the edit then follows too. Steps and schedule "
        "are not used with it.",
    )


class InvertNode(io.ComfyNode):
    """DDIM inversion of a photograph."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditInvert",
            display_name="DDIM Inversion",
            category=f"{CATEGORY}/inversion",
            description="Finds the noise from which the model would have drawn your photograph, and every latent on "
            "the way. Needed once per image: all edit nodes take its output, whatever the edit's prompt is.",
            search_aliases=_ALIASES,
            inputs=[
                io.Model.Input("model", tooltip="The model without edits (LoRAs are fine)."),
                io.Latent.Input("latent", tooltip="The photograph, from VAE Encode. A batch is inverted at once."),
                io.Conditioning.Input(
                    "source",
                    tooltip="Source prompt. Leave the text empty for CPAM; methods that say so want a caption.",
                ),
                io.Int.Input(
                    "steps",
                    default=50,
                    min=1,
                    max=1000,
                    tooltip="DDIM steps, which the edit will use too. 50 as in the papers; 20 is a fast preview.",
                ),
                io.Combo.Input(
                    "schedule",
                    options=list(OFFSETS),
                    default=next(iter(OFFSETS)),
                    tooltip="Timesteps 980, 960 ... 0 as the editing papers' code, or 981 ... 1 as diffusers and the "
                    "host's ddim_uniform.",
                    advanced=True,
                ),
                disk_cache_input(),
                _fine_steps_input(),
                _flow_iterations_input(),
                _flow_solver_input(),
                _sigmas_input(),
            ],
            outputs=[
                InversionSocket.Output(
                    display_name="inversion", tooltip="The image's whole trajectory, for edit nodes."
                )
            ],
        )

    @classmethod
    def execute(  # noqa: PLR0913, PLR0917 (one argument per input)
        cls,
        model: Any,
        latent: dict[str, Any],
        source: list[Any],
        steps: int,
        schedule: str,
        disk_cache: bool = False,
        fine_steps: int = 0,
        flow_iterations: int = 3,
        flow_solver: str = FIXED_POINT,
        sigmas: Tensor | None = None,
    ) -> io.NodeOutput:
        solver, given = FLOW_CHOICES[flow_solver], None if sigmas is None else tuple(sigmas.flatten().tolist())
        ddim = DDIMInversion(steps, OFFSETS[schedule], fine_steps, flow_iterations, solver, given)
        return io.NodeOutput(report.begun(ddim, model, latent, source, disk_cache))


def _fine_steps_input() -> io.Input:
    """Whether the inversion takes finer steps than the edit."""
    return io.Int.Input(
        "fine_steps",
        default=0,
        min=0,
        max=1000,
        optional=True,
        tooltip="Invert in so many steps, and keep the latents of the edit's own. 1000 with 50 steps is "
        "Plug-and-Play's authors' way: exacter, and 20 times the time. 0 inverts in the edit's steps.",
        advanced=True,
    )


class ReconstructNode(io.ComfyNode):
    """How well an inversion reconstructs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditReconstruct",
            display_name="Reconstruction Check",
            category=f"{CATEGORY}/inversion",
            description="Samples from the inverted noise with the source prompt and compares: a low PSNR here is why "
            "an edit drifts. At guidance 1 it shows the inversion's error, at 7.5 what guidance adds to it.",
            search_aliases=["inversion quality", "psnr", "reconstruction error"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model without edits that the image was inverted with."),
                inversion_input(),
                io.Vae.Input("vae", tooltip="The VAE that encoded the image."),
                guidance_input(1.0, "Guidance scale of the check."),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="Negative prompt, needed when guidance is not 1; an inversion's null text goes first.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="reconstruction", tooltip="What sampling from the inverted noise gives."),
                io.Image.Output(display_name="error plot", tooltip="Relative error of the latent at every step."),
                io.String.Output(display_name="report", tooltip="PSNR and latent error in words."),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, inversion: Any, vae: Any, guidance: float, negative: list[Any] | None = None
    ) -> io.NodeOutput:
        image, plot, text = report.check(model, inversion, vae, guidance, negative)
        return io.NodeOutput(image, plot, text, ui=ui.PreviewImage(plot, cls=cls))


class SaveInversionNode(io.ComfyNode):
    """Save an inversion."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditSaveInversion",
            display_name="Save Inversion",
            category=f"{CATEGORY}/inversion",
            description="Saves an inversion to output/inversions, to edit the same image again another day.",
            is_output_node=True,
            search_aliases=["store inversion", "keep trajectory", "safetensors inversion"],
            inputs=[
                inversion_input(),
                io.String.Input("filename_prefix", default="photo", tooltip="File name; a number is put behind it."),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="The file that was written.")],
        )

    @classmethod
    def execute(cls, inversion: Any, filename_prefix: str) -> io.NodeOutput:
        return io.NodeOutput(str(store.save(inversion, filename_prefix)))


class LoadInversionNode(io.ComfyNode):
    """Load an inversion."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditLoadInversion",
            display_name="Load Inversion",
            category=f"{CATEGORY}/inversion",
            description="Loads what Save Inversion has written. Use the model that it was made with.",
            search_aliases=["stored inversion", "open trajectory", "safetensors inversion"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=store.names(),
                    tooltip="A file of output/inversions; press R to see new ones.",
                )
            ],
            outputs=[InversionSocket.Output(display_name="inversion", tooltip="The saved trajectory.")],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str) -> float:
        return os.path.getmtime(store.path_of(file))

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        return io.NodeOutput(store.load(file))


NODES = [InvertNode, ReconstructNode, SaveInversionNode, LoadInversionNode]
