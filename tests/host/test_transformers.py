"""Transformers' families: which blocks they have, and which a name means."""

from __future__ import annotations

import pytest
import tiny
import tiny_joint
from attention_edit.attention.engine.layers import ALL, MIDDLE, VITAL, layers_of
from attention_edit.host.families import JOINT_FAMILIES, family_of
from attention_edit.host.models import check_latent, prediction_of
from attention_edit.host.transformers import takes_guidance
from bundle import transformer
from every_method import WHOLE, kinds_of_control
from house import PACK

NAMES = {"Flux": "Flux.1", "FluxSchnell": "Flux.1", "Flux2": "Flux.2", "Chroma": "Chroma", "SD3": "SD3"}
NAMES |= {"ZImage": "Z-Image", "Lumina2": "Lumina 2", "QwenImage": "Qwen-Image"}


@pytest.mark.parametrize("kind", list(tiny_joint.CONFIGS))
def test_blocks_are_counted_on_the_model(kind):
    model = tiny_joint.joint_model(kind)
    family, config = family_of(model), tiny_joint.CONFIGS[kind]
    double = [("double", i) for i in range(next(config[n] for n in ("depth", "n_layers", "num_layers") if n in config))]
    single = [("single", i) for i in range(config.get("depth_single_blocks", 0))]
    assert [layer.block for layer in family.layers] == double + single
    assert {layer.scale for layer in family.layers} == {config["patch_size"]}
    assert (family.name, family.joint, prediction_of(model)) == (NAMES[kind], True, "flow")
    assert takes_guidance(model) == config.get("guidance_embed", False)


def test_vital_blocks_are_the_papers():
    """Stable Flow's of Flux.1 dev; in a network with fewer blocks those at the same share of each stream."""
    flux = next(family for family in JOINT_FAMILIES if family.name == "Flux.1")
    double, single = (0, 1, 17, 18), (6, 9, 34, 35, 37)
    named = [("double", i) for i in double] + [("single", i) for i in single]
    assert [layer.block for layer in layers_of(flux, VITAL)] == named
    demo = family_of(transformer.load_demo_transformer()[0])
    shares = [("double", i * 3 // 19) for i in double] + [("single", i * 5 // 38) for i in single]
    assert [layer.block for layer in layers_of(demo, VITAL)] == list(dict.fromkeys(shares))


def test_sets_and_lists_are_checked_against_the_model():
    flux = next(family for family in JOINT_FAMILIES if family.name == "Flux.1")
    assert [layer.index for layer in layers_of(flux, MIDDLE)] == list(range(9, 48))
    assert layers_of(flux, ALL) == flux.layers
    assert [layer.index for layer in layers_of(flux, "0, 2, 5-7")] == [0, 2, 5, 6, 7]
    with pytest.raises(ValueError, match=r"'0, 57' chooses no layers of Flux\.1"):
        layers_of(flux, "0, 57")
    sd3, unet = family_of(tiny_joint.joint_model("SD3")), family_of(tiny.tiny_model())
    with pytest.raises(ValueError, match="no list of vital blocks is published for SD3"):
        layers_of(sd3, VITAL)
    with pytest.raises(ValueError, match=r"SD1\.x is a UNet"):
        layers_of(unet, VITAL)


def test_latents_are_of_the_models_own_channels():
    latent = {"samples": tiny_joint.joint_latent(1)}
    assert check_latent(latent, model=tiny_joint.joint_model("Flux")) is latent["samples"]
    with pytest.raises(ValueError, match=r"shape \(B, 128, h, w\)"):
        check_latent(latent, model=tiny_joint.joint_model("Flux2"))


def test_other_transformers_are_refused_with_the_list_of_what_works():
    model = tiny_joint.joint_model("Flux")
    model.model.model_config = type("HunyuanVideo", (), {})()
    with pytest.raises(
        ValueError,
        match=r"HunyuanVideo.*SD1\.x, SD2\.x, SDXL, Flux\.1, Flux\.2, Chroma, SD3, Z-Image, Lumina 2, Qwen-Image",
    ):
        family_of(model)


def test_a_flux_that_takes_a_second_image_is_refused():
    model = tiny_joint.joint_model("Flux")
    model.model.model_config.unet_config = {**model.model.model_config.unet_config, "in_channels": 96}
    with pytest.raises(ValueError, match="takes 96 channels"):
        family_of(model)


def test_the_helps_table_says_which_methods_work_there():
    """A row for every method, with what `on_joint` of its control says."""
    text = (PACK / "js/docs/AttnEditInvert.md").read_text("utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    told = {name: there for names, _, there in rows for name in names.split(", ")}
    assert set(WHOLE) <= set(told)
    kinds = {kind.name: kind for kind in kinds_of_control()}
    for name in WHOLE:
        assert told[name].startswith("works" if kinds[name].on_joint else "refused: "), name
    assert told["FlowEdit"] == "works"
