"""`python demo`: its command line, own pictures, expected results, sheets, and a run on a real server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from bundle import world
from machine.prompt_result import ServerError
from PIL import Image, ImageChops, ImageDraw
from scenes import expected
from show import options, own_picture, sheets, showcase
from show.own_picture import PictureError
from show.workflow_file import find_node

if TYPE_CHECKING:
    from machine.comfy_server import ComfyServer

BOX = (20, 20, 50, 40)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", (100, 60), (200, 120, 40)).save(path)
    return path


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    picture = Image.new("L", (100, 60))
    ImageDraw.Draw(picture).rectangle(BOX, fill=255)
    path = tmp_path / "mask.png"
    picture.save(path)
    return path


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--scenes", "0"], "--no-scores"),
        (["--prompt", "a cat"], "--prompt goes with --image"),
        (["--mask", "m.png"], "--mask goes with --image"),
        (["--image", "PHOTO"], "needs --prompt"),
        (["--image", "PHOTO", "--prompt", "x", "--serve"], "does not go with --serve"),
        (["--image", "nowhere.png", "--prompt", "x"], "there is no file nowhere.png"),
        (["--image", "PHOTO", "--prompt", "x", "--steps", "0"], "from 1 to 1000"),
    ],
)
def test_bad_command_lines(arguments: list[str], text: str, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [str(photo) if argument == "PHOTO" else argument for argument in arguments]
    with pytest.raises(SystemExit):
        options.parse(given)
    assert text in capsys.readouterr().err


def test_a_removal_needs_no_prompt(photo: Path) -> None:
    assert options.parse(["--image", str(photo), "--task", "remove"]).prompt is None


def test_own_picture_from_a_mask_file(photo: Path, mask: Path, tmp_path: Path) -> None:
    """All pixels are kept; a mask of another size is brought to the picture's."""
    made = own_picture.prepare(photo, mask, None)
    assert made.image.tobytes() == Image.open(photo).tobytes()
    assert made.mask.tobytes() == Image.open(mask).tobytes()
    Image.open(mask).resize((50, 30)).save(tmp_path / "small.png")
    assert own_picture.prepare(photo, tmp_path / "small.png", None).mask.size == (100, 60)


def test_each_run_has_a_folder_of_its_own(tmp_path: Path) -> None:
    """So that nothing in it is of an earlier run."""
    made = [showcase.new_folder(tmp_path / "out", "photo replace") for _ in range(3)]
    assert [folder.name for folder in made] == ["photo replace", "photo replace 2", "photo replace 3"]
    assert all(folder.is_dir() for folder in made)


def test_own_picture_from_the_mask_editor(photo: Path, mask: Path, tmp_path: Path) -> None:
    """The editor saves the mask as transparency and keeps the colours under it."""
    edited = Image.open(photo).convert("RGBA")
    edited.putalpha(Image.eval(Image.open(mask), lambda value: 255 - value))
    edited.save(tmp_path / "edited.png")
    by_alpha = own_picture.prepare(tmp_path / "edited.png", None, None)
    by_file = own_picture.prepare(photo, mask, None)
    assert by_alpha.mask.tobytes() == by_file.mask.tobytes()
    assert by_alpha.image.tobytes() == by_file.image.tobytes()


def test_bad_pictures(photo: Path, tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"no transparency\. Give --mask .* mask editor"):
        own_picture.prepare(photo, None, None)
    for colour, which in ((0, "nothing"), (255, "everything")):
        Image.new("L", (100, 60), colour).save(tmp_path / "flat.png")
        with pytest.raises(PictureError, match=f"selects {which}"):
            own_picture.prepare(photo, tmp_path / "flat.png", None)
    Image.new("L", (60, 60)).save(tmp_path / "square.png")
    with pytest.raises(PictureError, match="same proportions"):
        own_picture.prepare(photo, tmp_path / "square.png", None)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(PictureError, match="not a picture"):
        own_picture.prepare(tmp_path / "text.png", None, None)


def test_checkpoints(tmp_path: Path) -> None:
    """By path, by name in the host's folder, and an error that lists what is there."""
    folder = tmp_path / "models" / "checkpoints" / "sd15"
    folder.mkdir(parents=True)
    (folder / "mine.safetensors").write_bytes(b"weights")
    found = own_picture.find_checkpoint("sd15/mine.safetensors", tmp_path)
    assert own_picture.find_checkpoint(str(folder / "mine.safetensors"), tmp_path) == found
    with pytest.raises(PictureError, match=r"no checkpoint 'other'.*sd15/mine\.safetensors"):
        own_picture.find_checkpoint("other", tmp_path)
    base = tmp_path / "base"
    (base / "models" / "checkpoints").mkdir(parents=True)
    for _ in range(2):
        name = own_picture.link_checkpoint(found, base)
        assert (base / "models" / "checkpoints" / name).read_bytes() == b"weights"


def test_expected_scenes() -> None:
    scenes = world.sample_scenes(1, 5, objects=2)
    ground = expected.edited(scenes, "change the background", "a pink background")
    assert world.full_captions(ground)[0].endswith("a pink background")
    assert torch.equal(ground.shape, scenes.shape)
    recoloured = expected.edited(scenes, "replace or recolour", "a blue square")
    assert world.full_captions(recoloured)[0].startswith("a blue square and ")
    kept = expected.edited(scenes, "edit, keep the object", "a circle")
    assert int(kept.colour[0, 0]) == int(scenes.colour[0, 0])
    assert int(kept.shape[0, 0]) == world.SHAPES.index("circle")
    second = expected.edited(scenes, "replace or recolour", "a blue square", 1)
    assert world.full_captions(second)[0].split(" and ")[1].startswith("a blue square on ")
    assert torch.equal(second.shape[:, 0], scenes.shape[:, 0])
    assert int(expected.edited(scenes, "remove the object", "").shape[0, 0]) == world.NOTHING
    with pytest.raises(ValueError, match="names no shape"):
        expected.edited(scenes, "replace or recolour", "a dog")


def test_two_prompts_edit_two_objects() -> None:
    def node(kind: str, title: str, **inputs: object) -> dict:
        return {"class_type": kind, "inputs": inputs, "_meta": {"title": title}}

    prompt = {
        "1": node("AttnEditDemoScene", "Demo Scene", scene=4, objects=2),
        "2": node("AttnEditMasks", "Edit Masks", task="replace or recolour"),
        "3": node("CLIPTextEncode", "Edit Prompt", text="a red circle"),
        "4": node("CLIPTextEncode", "Second Edit Prompt", text="a blue square"),
    }
    truth = expected.truth_of(prompt)
    assert truth is not None
    assert world.full_captions(truth)[0].startswith("a red circle and a blue square on ")


def test_sheets() -> None:
    red, blue = Image.new("RGB", (128, 128), "red"), Image.new("RGB", (512, 256), "blue")
    made = sheets.sheet({"before": red, "after": blue}, "title")
    assert made.width == 256 + 512 + 3 * sheets.GAP
    assert made.getpixel((sheets.GAP + 128, 200)) == (255, 0, 0)
    assert made.getpixel((2 * sheets.GAP + 256 + 200, 200)) == (0, 0, 255)
    green = Image.new("RGB", (128, 128), "green")
    pair, wide, alone = sheets.thumbnail(red, green), sheets.thumbnail(red, blue), sheets.thumbnail(None, green)
    assert pair.size == wide.size == alone.size == (512, 256)
    assert (pair.getpixel((10, 10)), pair.getpixel((500, 10))) == ((255, 0, 0), (0, 128, 0))
    assert (wide.getpixel((10, 10)), wide.getpixel((500, 10))) == ((0, 0, 255), (0, 0, 255))
    assert (alone.getpixel((10, 10)), alone.getpixel((256, 10))) == ((255, 255, 255), (0, 128, 0))


@pytest.mark.server
def test_runs_a_workflow_and_keeps_its_columns(server: ComfyServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.forget()  # what other tests have left in the server's cache shows no progress
    prompt, workflow = showcase.load(server, "cpam-replace")
    made = showcase.run(server, "cpam-replace", prompt, workflow)
    assert list(made.images) == ["before", "mask", "after", "truth"]
    assert made.title == "replace or recolour: a blue square"
    assert {image.size for image in made.images.values()} == {(world.SIZE, world.SIZE)}
    printed = capsys.readouterr().out
    assert "cpam-replace: DDIM Inversion" in printed
    assert "cpam-replace: KSampler" in printed


@pytest.mark.server
@pytest.mark.parametrize("task", list(options.WORKFLOWS))
def test_edits_an_own_picture(task: str, server: ComfyServer, photo: Path, mask: Path, tmp_path: Path) -> None:
    given = ["--image", str(photo), "--mask", str(mask), "--prompt", "a blue square", "--task", task]
    chosen = options.parse([*given, "--steps", "4", "--guidance", "2", "--output", str(tmp_path)])
    picture = own_picture.prepare(photo, mask, None)
    path = showcase.run_own(server, chosen, picture)
    assert path == tmp_path / "after.png" and (tmp_path / "sheet.png").is_file()
    with Image.open(path) as after:
        differs = ImageChops.difference(after.convert("RGB"), picture.image).convert("L")
    assert differs.size == (100, 60) and differs.getbbox() is not None
    if task not in ("background", "remove"):
        left, top, right, _ = differs.getbbox() or (0, 0, 0, 0)
        # Half of the dilation, 0.3 of the object's size, and a feather of 8 fitted pixels that are smaller than these.
        reach = round((31 * 21) ** 0.5 * 0.3 / 2) + 8 + 2
        assert left >= BOX[0] - reach and right <= BOX[2] + reach and top >= BOX[1] - reach
    history: dict[str, Any] = server.get("/history?max_items=1")
    inputs = {entry["class_type"]: entry["inputs"] for entry in next(iter(history.values()))["prompt"][2].values()}
    assert "AttnEditDemoScene" not in inputs
    assert inputs["AttnEditInvert"]["steps"] == 4
    assert (inputs.get("KSampler") or inputs["CFGGuider"])["cfg"] == 2


@pytest.mark.server
def test_a_checkpoint_takes_the_demo_models_place(server: ComfyServer) -> None:
    prompt, _ = showcase.load(server, "cpam-replace")
    model = find_node(prompt, "AttnEditDemoModel")
    own_picture.put_in(prompt, "a.png", "b.png", "mine.safetensors")
    assert prompt[model]["inputs"] == {"ckpt_name": "mine.safetensors"}
    loader = server.object_info()[prompt[model]["class_type"]]
    assert loader["output"] == ["MODEL", "CLIP", "VAE"] == server.object_info()["AttnEditDemoModel"]["output"]
    assert prompt[find_node(prompt, "VAEEncode")]["inputs"]["pixels"] == ["fit", 0]
    assert prompt[find_node(prompt, "AttnEditMasks")]["inputs"]["mask"] == ["fit", 1]
    assert prompt["fit"]["inputs"]["model"] == [model, 0]
    assert prompt[find_node(prompt, "PreviewImage")]["inputs"]["images"] == ["own_image", 0]


@pytest.mark.server
def test_a_failing_node_is_named(server: ComfyServer) -> None:
    prompt, _ = showcase.load(server, "cpam-replace")
    prompt["solid"] = {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 128, "height": 128}}
    prompt["solid"]["_meta"] = {"title": "Solid"}
    next(e for e in prompt.values() if e["class_type"] == "AttnEditMasks")["inputs"]["mask"] = ["solid", 0]
    with pytest.raises(ServerError, match=r"cpam-replace failed at Edit Masks: .*selects nothing"):
        showcase.run(server, "cpam-replace", prompt)


def test_serving_ends_with_the_server(capsys: pytest.CaptureFixture[str]) -> None:
    """The browser is opened on the template; a server that is gone is an error with its log."""
    opened: list[str] = []

    class Gone:
        url = "http://127.0.0.1:1"
        alive = False

        def log_tail(self) -> str:
            return "last words"

    gone: Any = Gone()
    with pytest.raises(ServerError, match="last words"):
        showcase.serve(gone, opened.append)
    assert opened == ["http://127.0.0.1:1/?template=cpam-replace&source=attention-edit"]
    assert opened[0] in capsys.readouterr().out


def test_every_task_has_its_workflow() -> None:
    assert set(options.WORKFLOWS.values()) == {path.stem for path in showcase.WORKFLOWS.glob("cpam-*.json")}
