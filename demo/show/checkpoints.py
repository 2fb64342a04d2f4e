"""Make the workflows of real transformers from photo-edit: `python demo --blueprints` writes them too.

In place of the demo's scene and model stand Load Image and the loaders of a family's files, with the values that its
publisher and the papers give. No weights were here to try them: the tests run the same graph on the demo transformer.
Standard library only.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from show.workflow_file import read_workflow

FOLDER = Path(__file__).resolve().parents[2] / "workflows"
ORIGINAL = "photo-edit"
SCENE, LARGE, MODEL = "AttnEditDemoScene", "Large Photograph", "AttnEditDemoModel"
"""What a person's own photograph and model take the place of: two nodes by type, one by title."""
STEPS, GUIDANCE = 28, 4
"""28 steps are what the papers on inverting Flux take, 4 what each publisher gives for its undistilled weights."""
OBJECT = "a red vase"
PAD = 40
"""Pixels between the last loader and the group's edge."""
KINDS = {"upload": "IMAGEUPLOAD", "shift": "FLOAT"}
"""Types of widgets that are no lists."""
IDS = uuid.uuid5(uuid.NAMESPACE_URL, "https://github.com/attention-edit/attention-edit/checkpoints")


@dataclass(frozen=True)
class Weights:
    """A file of a model: its folder in models/, its name, and its size in GB."""

    folder: str
    name: str
    size: float


@dataclass(frozen=True)
class Checkpoint:
    """A family's workflow.

    Attributes:
        name: of the file in workflows/. title: of the family. repository: on Hugging Face. licence: of the weights.
        diffusion, text, vae: its files. encoder: CLIPLoader's type.
        shift: for ModelSamplingAuraFlow; None where the host's own is the publisher's.
        remark: one more line of the note.
    """

    name: str
    title: str
    repository: str
    licence: str
    diffusion: Weights
    text: Weights
    vae: Weights
    encoder: str
    shift: float | None = None
    remark: str = ""

    @property
    def files(self) -> tuple[Weights, Weights, Weights]:
        """All its files."""
        return self.diffusion, self.text, self.vae


QWEN3 = Weights("text_encoders", "qwen_3_4b.safetensors", 8.0)
ROWS = (
    Checkpoint(
        "photo-edit-flux2-klein",
        "Flux.2 Klein 4B",
        "Comfy-Org/flux2-klein",
        "Apache 2.0",
        Weights("diffusion_models", "flux-2-klein-base-4b.safetensors", 7.8),
        QWEN3,
        Weights("vae", "flux2-vae.safetensors", 0.34),
        "flux2",
        remark="Take the *base* weights: those without *base* in the name draw in four steps, too few to invert.",
    ),
    Checkpoint(
        "photo-edit-qwen-image",
        "Qwen-Image",
        "Comfy-Org/Qwen-Image_ComfyUI",
        "Apache 2.0",
        Weights("diffusion_models", "qwen_image_fp8_e4m3fn.safetensors", 20.4),
        Weights("text_encoders", "qwen_2.5_vl_7b_fp8_scaled.safetensors", 9.4),
        Weights("vae", "qwen_image_vae.safetensors", 0.25),
        "qwen_image",
        3.1,
        "The Lightning LoRAs draw in a few steps, too few to invert.",
    ),
    Checkpoint(
        "photo-edit-z-image",
        "Z-Image",
        "Comfy-Org/z_image",
        "Apache 2.0",
        Weights("diffusion_models", "z_image_bf16.safetensors", 12.3),
        QWEN3,
        Weights("vae", "ae.safetensors", 0.34),
        "lumina2",
        remark="Your LoRAs for it go behind *Load Diffusion Model*. Z-Image Turbo draws in few steps, too few for an "
        "inversion.",
    ),
)


def _slot(name: str, kind: str, widget: bool = True) -> dict[str, Any]:
    found: dict[str, Any] = {"localized_name": name, "name": name, "type": kind, "link": None}
    return {**found, "widget": {"name": name}} if widget else found


def _node(kind: str, place: tuple[int, int], height: int, values: Mapping[str, Any], outputs: str) -> dict[str, Any]:
    """A host's loader; all its inputs are widgets."""
    return {
        **{"id": 0, "type": kind, "pos": list(place), "size": [280, height], "flags": {}, "order": 0, "mode": 0},
        "inputs": [_slot(name, KINDS.get(name, "COMBO")) for name in values],
        "outputs": [{"localized_name": name, "name": name, "type": name, "links": []} for name in outputs.split()],
        "properties": {"Node name for S&R": kind},
        "widgets_values": list(values.values()),
    }


def _loaders(row: Checkpoint) -> list[dict[str, Any]]:
    """Load Image and the loaders, with what the front end offers where a file is missing: its name, place and URL."""
    made = [
        _node("LoadImage", (0, 20), 314, {"image": "example.png", "upload": "image"}, "IMAGE MASK"),
        _node("UNETLoader", (0, 394), 82, {"unet_name": row.diffusion.name, "weight_dtype": "default"}, "MODEL"),
        _node(
            "CLIPLoader",
            (0, 536),
            106,
            {"clip_name": row.text.name, "type": row.encoder, "device": "default"},
            "CLIP",
        ),
        _node("VAELoader", (0, 702), 58, {"vae_name": row.vae.name}, "VAE"),
    ]
    for node, weights in zip(made[1:], row.files, strict=True):
        url = f"https://huggingface.co/{row.repository}/resolve/main/split_files/{weights.folder}/{weights.name}"
        node["properties"]["models"] = [{"name": weights.name, "url": url, "directory": weights.folder}]
    if row.shift is not None:
        made.append(_node("ModelSamplingAuraFlow", (0, 820), 58, {"shift": row.shift}, "MODEL"))
        made[-1]["inputs"].insert(0, _slot("model", "MODEL", widget=False))
    return made


class _Graph:
    """photo-edit as it is changed into a row's workflow."""

    def __init__(self) -> None:
        self.workflow = read_workflow(FOLDER / f"{ORIGINAL}.json")

    @property
    def nodes(self) -> list[dict[str, Any]]:
        """The workflow's nodes."""
        return self.workflow["nodes"]

    def find(self, name: str) -> dict[str, Any]:
        """The only node of a title or type."""
        (found,) = [node for node in self.nodes if name in (node.get("title"), node["type"])]
        return found

    def add(self, nodes: list[dict[str, Any]]) -> None:
        """New nodes, with numbers of their own."""
        for node in nodes:
            self.workflow["last_node_id"] += 1
            self.nodes.append({**node, "id": self.workflow["last_node_id"]})

    def link(self, origin: str, slot: int, target: str, name: str) -> None:
        """A new link into an input that has none."""
        one, other = self.find(origin), self.find(target)
        place = next(i for i, found in enumerate(other["inputs"]) if found["name"] == name)
        self.workflow["last_link_id"] = number = self.workflow["last_link_id"] + 1
        kind = one["outputs"][slot]["type"]
        self.workflow["links"].append([number, one["id"], slot, other["id"], place, kind])
        one["outputs"][slot]["links"].append(number)
        other["inputs"][place]["link"] = number

    def replace(self, old: str, slot: int, new: str, new_slot: int) -> None:
        """All links from an output begin at another."""
        one, other = self.find(old)["id"], self.find(new)
        for link in self.workflow["links"]:
            if link[1:3] == [one, slot]:
                link[1:3] = [other["id"], new_slot]
                other["outputs"][new_slot]["links"].append(link[0])

    def remove(self, name: str) -> None:
        """A node and the links into it."""
        gone = self.find(name)["id"]
        links = [link for link in self.workflow["links"] if link[3] == gone]
        self.workflow["links"] = [link for link in self.workflow["links"] if link not in links]
        self.workflow["nodes"] = [node for node in self.nodes if node["id"] != gone]
        for number, origin, slot, *_ in links:
            for node in self.nodes:
                if node["id"] == origin:
                    node["outputs"][slot]["links"].remove(number)


def _note(row: Checkpoint) -> str:
    files = "\n".join(f"- `models/{file.folder}/{file.name}` ({file.size:g} GB)" for file in row.files)
    return (
        f"# Edit a photograph on {row.title}\n"
        "What you paint over becomes what **Edit Prompt** says; every pixel outside stays the photograph's.\n\n"
        f"Files: `{row.repository}` on Hugging Face ({row.licence}), folder `split_files`; nothing downloads by "
        f"itself:\n{files}\n\n"
        "1. **Load Image**: any size. Right-click it, *Open in MaskEditor*, and paint over the object.\n"
        "2. **Edit Prompt**: what the painted place shall show, and nothing else.\n"
        "3. Run. *steps* must be the same in DDIM Inversion and KSampler.\n\n"
        f"{row.remark} The values are the publisher's and the papers'; they were not tried on the real weights, the "
        "graph was, with the demo model."
    )


def _troubles(original: str) -> str:
    """photo-edit's, and what helps on transformers."""
    more = (
        "- **The background drifts before it is put back:** raise *flow_iterations* in DDIM Inversion to 5 or 10.\n"
        "- **The old object shines through:** raise *cfg*, or set *normal_share* in CPAM to 0.\n"
    )
    return original.replace("- **A second edit:**", f"{more}- **A second edit:**")


def workflow(row: Checkpoint) -> dict[str, Any]:
    """A row's workflow as the front end saves it."""
    graph = _Graph()
    graph.add(_loaders(row))
    model = "UNETLoader" if row.shift is None else "ModelSamplingAuraFlow"
    graph.replace(LARGE, 0, "LoadImage", 0)
    graph.replace(SCENE, 1, "LoadImage", 1)
    for slot, name in enumerate((model, "CLIPLoader", "VAELoader")):
        graph.replace(MODEL, slot, name, 0)
    if row.shift is not None:
        graph.link("UNETLoader", 0, model, "model")
    for name in (LARGE, SCENE, MODEL):
        graph.remove(name)
    (troubles,) = graph.find("When it fails")["widgets_values"]
    graph.find("Read me")["widgets_values"] = [_note(row)]
    graph.find("When it fails")["widgets_values"] = [_troubles(troubles)]
    graph.find("Edit Prompt")["widgets_values"] = [OBJECT]
    graph.find("AttnEditInvert")["widgets_values"][0] = STEPS
    graph.find("AttnEditMasks")["widgets_values"][1] = 0.1
    graph.find("KSampler")["widgets_values"][2:6] = [STEPS, GUIDANCE, "euler", "simple"]
    graph.find("SaveImage")["widgets_values"] = [f"attention-edit/{row.name}"]
    box = graph.workflow["groups"][0]["bounding"]
    bottom = max(node["pos"][1] + node["size"][1] for node in graph.nodes if node["pos"][0] == 0)
    box[3] = max(box[3], bottom + PAD - box[1])
    graph.workflow["id"] = str(uuid.uuid5(IDS, row.name))
    return graph.workflow


def files() -> dict[str, str]:
    """The text of every file, by its name."""
    return {f"{row.name}.json": json.dumps(workflow(row), indent=1, ensure_ascii=False) + "\n" for row in ROWS}


def write() -> list[Path]:
    """Write the files anew, each with photo-edit's picture; returns them."""
    made = files()
    for name, text in made.items():
        (FOLDER / name).write_text(text, "utf-8")
        shutil.copyfile(FOLDER / f"{ORIGINAL}.jpg", (FOLDER / name).with_suffix(".jpg"))
    return [FOLDER / name for name in made]
