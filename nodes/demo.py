"""The bundled model and its images, so that every workflow runs before anything is downloaded."""

from __future__ import annotations

from ..host.schemas import io
from .sockets import CATEGORY


class DemoModelNode(io.ComfyNode):
    """The demo model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditDemoModel",
            display_name="Demo Model",
            category=f"{CATEGORY}/demo",
            description="A tiny text-to-image model that comes with the pack and knows coloured shapes only. It shows "
            "what a workflow does; replace it by Load Checkpoint for your own photographs.",
            search_aliases=["example checkpoint", "test model", "tiny model"],
            inputs=[
                io.Combo.Input(
                    "network",
                    options=["UNet", "transformer"],
                    default="UNet",
                    optional=True,
                    tooltip="UNet: SD1.x topology. Transformer: a tiny Flux on the same latents and texts, for the "
                    "methods that work on transformers.",
                )
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="SD1.x topology or Flux, tiny widths."),
                io.Clip.Output(display_name="clip", tooltip="Knows the words of the demo world."),
                io.Vae.Output(display_name="vae", tooltip="8x autoencoder."),
            ],
        )

    @classmethod
    def execute(cls, network: str = "UNet") -> io.NodeOutput:
        from ..demo.bundle.load import load_demo_model
        from ..demo.bundle.transformer import load_demo_transformer

        return io.NodeOutput(*(load_demo_transformer() if network == "transformer" else load_demo_model()))


class DemoSceneNode(io.ComfyNode):
    """A picture of the demo world."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditDemoScene",
            display_name="Demo Scene",
            category=f"{CATEGORY}/demo",
            description="A rendered 128x128 picture to edit with the Demo Model, with the masks of its objects. "
            "Replace it by Load Image for your own photographs.",
            search_aliases=["example image", "test image", "sample picture"],
            inputs=[
                io.Int.Input("scene", default=1, min=0, max=100_000, tooltip="Which picture; every number is another."),
                io.Int.Input("objects", default=1, min=1, max=2, tooltip="How many objects it shows."),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The picture."),
                io.Mask.Output(display_name="mask", tooltip="Its first object."),
                io.String.Output(display_name="caption", tooltip="What it shows."),
                io.Mask.Output(display_name="second_mask", tooltip="Its second object; nothing if it has only one."),
            ],
        )

    @classmethod
    def execute(cls, scene: int, objects: int) -> io.NodeOutput:
        from ..demo.bundle import world

        scenes = world.demo_scene(scene, objects)
        image = world.render(scenes).movedim(1, -1).contiguous()
        masks = world.masks(scenes)
        return io.NodeOutput(image, masks[:, 0], world.full_captions(scenes)[0], masks[:, 1])


NODES = [DemoModelNode, DemoSceneNode]
