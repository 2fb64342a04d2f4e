"""The demo model's T2I-Adapter, and sketches for it: what a ControlNet and a drawn outline are on photographs."""

from __future__ import annotations

from ..host.schemas import io
from .sockets import CATEGORY


class DemoAdapterNode(io.ComfyNode):
    """The demo adapter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttnEditDemoAdapter",
            display_name="Demo Adapter",
            category=f"{CATEGORY}/demo",
            description="A tiny T2I-Adapter for sketches that comes with the pack and fits the Demo Model's UNet. "
            "Connect Apply ControlNet; replace it by Load ControlNet Model for your own photographs.",
            search_aliases=["example controlnet", "sketch adapter", "t2i-adapter"],
            inputs=[],
            outputs=[
                io.ControlNet.Output(
                    display_name="control_net", tooltip="For Apply ControlNet, with a sketch: white lines on black."
                )
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from ..demo.bundle.adapter import load_demo_adapter

        return io.NodeOutput(load_demo_adapter())


class DemoSketchNode(io.ComfyNode):
    """The sketch of a demo scene as it shall be."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..demo.bundle import sketch, world

        return io.Schema(
            node_id="AttnEditDemoSketch",
            display_name="Demo Sketch",
            category=f"{CATEGORY}/demo",
            description="The outlines of a Demo Scene with one object of another shape or at another place, to edit it "
            "by a sketch, with the region that changes. Replace it by a drawing of your own for photographs.",
            search_aliases=["example sketch", "outline", "edge map", "move object"],
            inputs=[
                io.Int.Input("scene", default=1, min=0, max=100_000, tooltip="The same as Demo Scene's."),
                io.Int.Input("objects", default=1, min=1, max=2, tooltip="The same as Demo Scene's."),
                io.Int.Input("object", default=1, min=1, max=2, tooltip="Which object changes: the first or second."),
                io.Combo.Input(
                    "shape", options=[sketch.KEEP, *world.SHAPES], default=sketch.KEEP, tooltip="Its new shape."
                ),
                io.Combo.Input(
                    "colour",
                    options=[sketch.KEEP, *world.COLOURS],
                    default=sketch.KEEP,
                    tooltip="Its new colour. A sketch has none: this is for the result and the caption.",
                ),
                *(
                    io.Float.Input(
                        name,
                        default=0.0,
                        min=-1.0,
                        max=1.0,
                        step=0.05,
                        tooltip=f"How far it moves {way}, as a share of the picture's side; it stays inside.",
                    )
                    for name, way in (("right", "to the right, or below 0 to the left"), ("down", "down, or up"))
                ),
            ],
            outputs=[
                io.Image.Output(display_name="sketch", tooltip="White outlines on black, of all objects."),
                io.Mask.Output(display_name="region", tooltip="Where the object is and shall be, for Edit Masks."),
                io.Image.Output(display_name="result", tooltip="What a perfect edit would give."),
                io.String.Output(display_name="caption", tooltip="What the result shows."),
            ],
        )

    @classmethod
    def execute(
        cls, scene: int, objects: int, object: int, shape: str, colour: str, right: float, down: float
    ) -> io.NodeOutput:
        from ..demo.bundle import sketch, world

        if object > objects:
            raise ValueError(
                f"Set object of Demo Sketch to 1, or objects of both demo nodes to 2: the scene has {objects} object "
                f"and the one to change is number {object}."
            )
        before = world.demo_scene(scene, objects)
        after = sketch.altered(before, object - 1, shape, colour, right, down)
        lines = sketch.outlines(after).movedim(1, -1).repeat(1, 1, 1, 3)
        region = sketch.both_places(before, after, object - 1)[:, 0]
        result = world.render(after).movedim(1, -1).contiguous()
        return io.NodeOutput(lines, region, result, world.full_captions(after)[0])


NODES = [DemoAdapterNode, DemoSketchNode]
